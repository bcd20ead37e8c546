#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <thread>

#include "kernels/gemm/matmul.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {
namespace {

struct Shape {
  int64_t m, n, k;
  bool bias;
};

class GemmTest : public testing::TestWithParam<std::tuple<Shape, Compute>> {};

// float64 on the operands as they are multiplied (rounded to bf16 for kBf16): what remains is the
// error of the fp32 sums.
std::vector<float> Expected(const std::vector<float>& x, const std::vector<float>& w,
                            const std::vector<float>& bias, const Shape& s, Compute compute) {
  const auto operand = [&](float v) {
    return double{compute == Compute::kBf16 ? ToFloat(ToBf16(v)) : v};
  };
  std::vector<float> y(s.m * s.n);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = s.bias ? bias[j] : 0;
      for (int64_t c = 0; c < s.k; ++c) sum += operand(x[i * s.k + c]) * operand(w[j * s.k + c]);
      y[i * s.n + j] = static_cast<float>(sum);
    }
  }
  return y;
}

TEST_P(GemmTest, MatchesFloat64) {
  const auto [shape, compute] = GetParam();
  RandomData random(7);
  const std::vector<float> x = random.Floats(shape.m * shape.k),
                           w = random.Floats(shape.n * shape.k);
  const std::vector<float> bias = random.Floats(shape.n);
  const auto weight = PackedWeight::Create(w.data(), shape.n, shape.k, compute);
  EXPECT_EQ(weight->n(), shape.n);
  EXPECT_EQ(weight->k(), shape.k);
  std::vector<float> y = Poisoned(shape.m * shape.n);
  weight->Run(x.data(), shape.m, shape.bias ? bias.data() : nullptr, y.data());
  EXPECT_LT(RelativeError(y.data(), Expected(x, w, bias, shape, compute).data(), y.size()), 2e-6);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GemmTest,
    testing::Combine(testing::Values(Shape{1, 1, 1, false}, Shape{1, 1024, 384, false},
                                     Shape{3, 96, 128, true}, Shape{17, 131, 77, true},
                                     Shape{64, 64, 300, false}, Shape{512, 70, 33, false},
                                     Shape{1100, 40, 64, true}),
                     testing::Values(Compute::kFp32, Compute::kBf16)));

TEST(GemmTest, OneWeightServesManyThreadsAndSizes) {
  SetGemmThreads(1);
  const int64_t n = 160, k = 96;
  RandomData random(3);
  const std::vector<float> w = random.Floats(n * k);
  const auto weight = PackedWeight::Create(w.data(), n, k, Compute::kBf16);
  const std::vector<float> x = random.Floats(40 * k);
  const std::vector<float> expected = Expected(x, w, {}, {40, n, k, false}, Compute::kBf16);
  std::vector<double> worst(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t m = 1; m <= 40; ++m) {
        std::vector<float> y = Poisoned(m * n);
        weight->Run(x.data(), m, nullptr, y.data());
        worst[t] = std::max(worst[t], RelativeError(y.data(), expected.data(), y.size()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const double error : worst) EXPECT_LT(error, 2e-6);
}

TEST(GemmTest, ThreadCountReachesThreadsStartedLater) {
  SetGemmThreads(2);
  int seen = 0;
  std::thread([&] { seen = GemmThreads(); }).join();
  EXPECT_EQ(seen, 2);
  RandomData random(5);
  const std::vector<float> w = random.Floats(256 * 64), x = random.Floats(100 * 64);
  std::vector<float> y = Poisoned(100 * 256);
  PackedWeight::Create(w.data(), 256, 64, Compute::kFp32)->Run(x.data(), 100, nullptr, y.data());
  EXPECT_LT(
      RelativeError(y.data(), Expected(x, w, {}, {100, 256, 64, false}, Compute::kFp32).data(),
                    y.size()),
      2e-6);
  SetGemmThreads(1);
}

TEST(GemmTest, NativeBf16ImpliesLibraryBf16) {
  EXPECT_TRUE(LibraryHasBf16() || !HasNativeBf16());
}

}  // namespace
}  // namespace oscarkv::kernels
