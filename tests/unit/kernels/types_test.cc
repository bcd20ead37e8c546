#include "kernels/types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/convert.h"
#include "tests/unit/kernels/random_data.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The value of an fp16 by the definition of the format.
double ValueOf(int bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(Fp16Test, EveryValueToFloatAndBack) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = Fp16ToFloat(static_cast<Fp16>(bits));
    if ((bits & 0x7c00) == 0x7c00) {
      if (bits & 0x3ff) {
        EXPECT_TRUE(std::isnan(value)) << bits;
      } else {
        EXPECT_EQ(value, bits & 0x8000 ? -kInf : kInf);
      }
      continue;
    }
    ASSERT_EQ(value, ValueOf(bits)) << bits;
    ASSERT_EQ(std::signbit(value), bits >= 0x8000) << bits;
    ASSERT_EQ(FloatToFp16(value), bits);
  }
}

TEST(Fp16Test, RoundsToNearestTiesToEven) {
  for (int bits = 0; bits < 0x7bff; ++bits) {
    const auto tie = static_cast<float>((ValueOf(bits) + ValueOf(bits + 1)) / 2);  // exact in fp32
    const int even = bits & 1 ? bits + 1 : bits;
    ASSERT_EQ(FloatToFp16(tie), even) << bits;
    ASSERT_EQ(FloatToFp16(std::nextafter(tie, 0.0f)), bits);
    ASSERT_EQ(FloatToFp16(std::nextafter(tie, kInf)), bits + 1);
    ASSERT_EQ(FloatToFp16(-tie), 0x8000 | even);
  }
}

TEST(Fp16Test, SaturatesAndKeepsNan) {
  const float below = std::nextafter(65520.0f, 0.0f);
  for (const float v : {65504.0f, below, 65520.0f, 1e6f, 3e38f, kInf}) {
    EXPECT_EQ(FloatToFp16(v), 0x7bff) << v;
    EXPECT_EQ(FloatToFp16(-v), 0xfbff) << v;
  }
  EXPECT_TRUE(std::isnan(Fp16ToFloat(FloatToFp16(kNan))));
  EXPECT_EQ(FloatToFp16(1e-30f), 0);
  EXPECT_EQ(FloatToFp16(-0.0f), 0x8000);
}

TEST(Bf16Test, RoundsToNearestTiesToEven) {
  EXPECT_EQ(ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(ToBf16(kInf), 0x7f80);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::bit_cast<float>(0x7f800001u)))));
}

// The arrays' conversions are those of types.h, bit for bit, on every instruction set and for every
// remainder.
TEST(ConvertTest, ArraysMatchScalars) {
  RandomData random(1);
  std::vector<float> x(4099);
  for (float& v : x) v = std::bit_cast<float>(static_cast<uint32_t>(random.rng()()));
  x[0] = kNan, x[1] = -kInf, x[2] = std::bit_cast<float>(0xff800001u),
  x[3] = std::bit_cast<float>(0x3f808000u);
  ForEachSimdTarget([&] {
    for (const size_t n : {size_t{0}, size_t{1}, size_t{7}, size_t{16}, size_t{33}, x.size()}) {
      std::vector<Bf16> y(n + 1, 0xcdcd);
      ConvertToBf16(x.data(), n, y.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], ToBf16(x[i])) << i;
      ASSERT_EQ(y[n], 0xcdcd);
      std::vector<float> z(n + 1, 5.0f);
      ConvertToFloat(y.data(), n, z.data());
      for (size_t i = 0; i < n; ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(z[i]), uint32_t{y[i]} << 16) << i;
      ASSERT_EQ(z[n], 5.0f);
    }
  });
}

}  // namespace
}  // namespace oscarkv::kernels
