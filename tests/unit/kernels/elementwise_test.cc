#include "kernels/elementwise/op.h"

#include <gtest/gtest.h>

#include "tests/unit/kernels/random_data.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

// |a - b| <= tolerance * max(|b|, floor), element by element.
void ExpectClose(const std::vector<float>& a, const std::vector<float>& b, double tolerance,
                 double floor = 1e-30) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_LE(std::abs(double{a[i]} - b[i]), tolerance * std::max(std::abs(double{b[i]}), floor))
        << i << ": " << a[i] << " " << b[i];
  }
}

TEST(ElementwiseTest, RmsNorm) {
  RandomData random(1);
  ForEachSimdTarget([&] {
    for (const int64_t dim : {1, 3, 16, 64, 127, 128, 384, 1000}) {
      for (const float sigma : {1.0f, 1e-3f, 1e4f}) {
        const int64_t n = 3;
        std::vector<float> x = random.Floats(n * dim, sigma);
        const std::vector<float> weight = random.Floats(dim);
        std::vector<float> expected = Poisoned(n * dim), y = Poisoned(n * dim);
        RmsNorm(Backend::kRef, x.data(), weight.data(), 1e-6f, n, dim, expected.data());
        RmsNorm(Backend::kCpu, x.data(), weight.data(), 1e-6f, n, dim, y.data());
        ExpectClose(y, expected, 2e-6);
        RmsNorm(Backend::kCpu, x.data(), weight.data(), 1e-6f, n, dim, x.data());
        EXPECT_EQ(x, y) << "in place";
      }
    }
  });
}

TEST(ElementwiseTest, RmsNormOfZerosIsZero) {
  const std::vector<float> x(64, 0.0f), weight(64, 2.0f);
  std::vector<float> y = Poisoned(64);
  RmsNorm(Backend::kCpu, x.data(), weight.data(), 1e-6f, 1, 64, y.data());
  EXPECT_EQ(y, x);
}

TEST(ElementwiseTest, RmsNormByDefinition) {
  const std::vector<float> x = {3, 4}, weight = {1, 0.5f};
  std::vector<float> y = Poisoned(2);
  RmsNorm(Backend::kRef, x.data(), weight.data(), 0.5f, 1, 2, y.data());  // mean square 12.5
  EXPECT_NEAR(y[0], 3 / std::sqrt(13.0), 1e-7);
  EXPECT_NEAR(y[1], 2 / std::sqrt(13.0), 1e-7);
}

TEST(ElementwiseTest, SiluGate) {
  RandomData random(2);
  ForEachSimdTarget([&] {
    for (const int64_t n : {1, 15, 16, 17, 1000}) {
      std::vector<float> gate = random.Floats(n, 8);
      const std::vector<float> up = random.Floats(n);
      std::vector<float> expected = Poisoned(n), y = Poisoned(n);
      SiluGate(Backend::kRef, gate.data(), up.data(), n, expected.data());
      SiluGate(Backend::kCpu, gate.data(), up.data(), n, y.data());
      ExpectClose(y, expected, 1e-5, 1e-20);  // the exponent is rounded before 2^x: |gate| * 6e-8
      SiluGate(Backend::kCpu, gate.data(), up.data(), n, gate.data());
      EXPECT_EQ(gate, y) << "in place";
    }
    // Far out: x and 0. NaN stays NaN.
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> gate = {0, 100, -100, 3e38f, -3e38f, -80, 88, nan}, up(8, 1.0f);
    std::vector<float> y = Poisoned(8);
    SiluGate(Backend::kCpu, gate.data(), up.data(), 8, y.data());
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 100);
    EXPECT_NEAR(y[2], 0, 1e-35);
    EXPECT_EQ(y[3], 3e38f);
    EXPECT_NEAR(y[4], 0, 1e-35);
    EXPECT_NEAR(y[5], -80 * std::exp(-80.0), 1e-38);
    EXPECT_EQ(y[6], 88);
    EXPECT_TRUE(std::isnan(y[7]));
  });
}

TEST(ElementwiseTest, AddInPlace) {
  RandomData random(3);
  ForEachSimdTarget([&] {
    for (const int64_t n : {0, 1, 15, 16, 33, 1000}) {
      std::vector<float> x = random.Floats(n + 1);
      const std::vector<float> y = random.Floats(n);
      std::vector<float> expected = x;
      for (int64_t i = 0; i < n; ++i) expected[i] += y[i];
      std::vector<float> ref = x;
      AddInPlace(Backend::kRef, ref.data(), y.data(), n);
      AddInPlace(Backend::kCpu, x.data(), y.data(), n);
      EXPECT_EQ(x, expected);
      EXPECT_EQ(ref, expected);
    }
  });
}

struct RopeCase {
  int64_t heads, head_dim, half_dim;
};

TEST(ElementwiseTest, Rope) {
  RandomData random(4);
  ForEachSimdTarget([&] {
    for (const RopeCase& c :
         {RopeCase{1, 128, 64}, RopeCase{3, 64, 32}, RopeCase{2, 128, 16}, RopeCase{2, 10, 3}}) {
      const std::vector<int32_t> positions = {0, 7, 3, 40};
      const int64_t n = positions.size();
      std::vector<float> cos(41 * c.half_dim), sin(cos.size());
      for (int p = 0; p <= 40; ++p) {
        for (int64_t i = 0; i < c.half_dim; ++i) {
          const double angle = p * std::pow(1e4, -double(i) / c.half_dim);
          cos[p * c.half_dim + i] = static_cast<float>(std::cos(angle));
          sin[p * c.half_dim + i] = static_cast<float>(std::sin(angle));
        }
      }
      const std::vector<float> x = random.Floats(n * c.heads * c.head_dim);
      std::vector<float> expected = x, ref = x, y = x;
      for (int64_t row = 0; row < n * c.heads; ++row) {
        for (int64_t i = 0; i < c.half_dim; ++i) {
          const int64_t p = positions[row / c.heads] * c.half_dim + i, a = row * c.head_dim + i,
                        b = a + c.half_dim;
          expected[a] = static_cast<float>(double{x[a]} * cos[p] - double{x[b]} * sin[p]);
          expected[b] = static_cast<float>(double{x[b]} * cos[p] + double{x[a]} * sin[p]);
        }
      }
      Rope(Backend::kRef, ref.data(), n, c.heads, c.head_dim, c.half_dim, positions.data(),
           cos.data(), sin.data());
      Rope(Backend::kCpu, y.data(), n, c.heads, c.head_dim, c.half_dim, positions.data(),
           cos.data(), sin.data());
      EXPECT_EQ(ref, expected);
      ExpectClose(y, expected, 1e-6, 1);
    }
  });
}

TEST(ElementwiseDeathTest, CudaIsAbsent) {
  float x = 1;
  EXPECT_DEATH(AddInPlace(Backend::kCuda, &x, &x, 1), "no CUDA backend");
}

}  // namespace
}  // namespace oscarkv::kernels
