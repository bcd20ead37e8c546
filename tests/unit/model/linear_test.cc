#include "model/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/thread_pool.h"

namespace oscarkv {
namespace {

constexpr int kN = 333, kK = 192;  // the last slice is narrower than the others

std::vector<float> Random(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-52 - 1);
  return v;
}

struct Case {
  const char* name;
  kernels::Compute compute;
  Operand operand;
  double bound;  // of the error against the sum of absolute products
};
// Weights are exact in bf16: what is lost is lost on x.
const Case kCases[] = {
    {"fp32", kernels::Compute::kFp32, Operand::kRounded, 1e-6},
    {"fp32_split_is_plain", kernels::Compute::kFp32, Operand::kSplit, 1e-6},
    {"bf16", kernels::Compute::kBf16, Operand::kRounded, 0x1p-8},
    {"bf16_split", kernels::Compute::kBf16, Operand::kSplit, 0x1p-16},
};

class LinearTest : public testing::TestWithParam<Case> {};

TEST_P(LinearTest, EqualsTheSumForAnyRowsAndSlices) {
  std::vector<float> weight = Random(kN * kK, 1);
  for (float& w : weight) w = kernels::ToFloat(kernels::ToBf16(w));
  const std::vector<float> x = Random(70 * kK, 2), bias = Random(kN, 3);
  kernels::ThreadPool pool(3);
  for (int slices : {1, 2, 3, 100}) {
    for (bool with_bias : {false, true}) {
      const Linear linear(weight.data(), kN, kK, with_bias ? bias : std::vector<float>(),
                          GetParam().compute, GetParam().operand, slices);
      EXPECT_EQ(linear.n(), kN);
      for (int m : {1, 5, 70}) {
        std::vector<float> y(m * kN, NAN), threaded(m * kN, NAN);
        linear.Run(x.data(), m, y.data(), nullptr);
        linear.Run(x.data(), m, threaded.data(), &pool);
        EXPECT_EQ(y, threaded);
        double worst = 0;
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < kN; ++j) {
            double sum = with_bias ? bias[j] : 0, size = std::abs(sum);
            for (int k = 0; k < kK; ++k) {
              const double p = double{x[i * kK + k]} * weight[j * kK + k];
              sum += p;
              size += std::abs(p);
            }
            const double error = std::abs(y[i * kN + j] - sum) / size;
            if (!(error <= worst)) worst = error;
          }
        }
        EXPECT_LT(worst, GetParam().bound)
            << slices << " slices, " << m << " rows, bias " << with_bias;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Operands, LinearTest, testing::ValuesIn(kCases),
                         [](const auto& i) { return i.param.name; });

}  // namespace
}  // namespace oscarkv
