#include "model/rope_tables.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace oscarkv {
namespace {

RopeConfig Llama3() {
  RopeConfig rope;
  rope.type = RopeConfig::Type::kLlama3;
  rope.theta = 500000;
  rope.factor = 8;
  rope.low_freq_factor = 1;
  rope.high_freq_factor = 4;
  rope.original_max_position_embeddings = 8192;
  return rope;
}

TEST(RopeFrequenciesTest, Default) {
  const auto f = RopeInverseFrequencies({.theta = 10000}, 64);
  ASSERT_TRUE(f.ok());
  ASSERT_EQ(f->size(), 32);
  for (int i = 0; i < 32; ++i)
    EXPECT_NEAR((*f)[i], std::pow(10000.0, -i / 32.0), 1e-7 * (*f)[i]) << i;
}

TEST(RopeFrequenciesTest, LinearDividesByTheFactor) {
  const auto f =
      RopeInverseFrequencies({.type = RopeConfig::Type::kLinear, .theta = 10000, .factor = 4}, 64);
  ASSERT_TRUE(f.ok());
  EXPECT_FLOAT_EQ((*f)[0], 0.25f);
}

TEST(RopeFrequenciesTest, PartialTurnsFewerChannels) {
  const auto f = RopeInverseFrequencies({.theta = 10000, .partial_rotary_factor = 0.5}, 128);
  ASSERT_TRUE(f.ok());
  ASSERT_EQ(f->size(), 32);
  EXPECT_NEAR((*f)[1], std::pow(10000.0, -1 / 32.0), 1e-7);
  EXPECT_FALSE(RopeInverseFrequencies({.partial_rotary_factor = 0.01}, 64).ok());
  EXPECT_FALSE(RopeInverseFrequencies({.partial_rotary_factor = 0.05}, 64).ok());  // 3 channels
}

// Long waves are slowed by the factor, short ones kept, between them a ramp in original /
// wavelength.
TEST(RopeFrequenciesTest, Llama3) {
  const RopeConfig rope = Llama3();
  const auto f = RopeInverseFrequencies(rope, 128);
  ASSERT_TRUE(f.ok());
  int kept = 0, slowed = 0, between = 0;
  for (int i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -i / 64.0);
    const double turns = 8192 * plain / (2 * std::numbers::pi);  // within the original context
    double share = (turns - 1) / (4 - 1);
    kept += share > 1;
    slowed += share < 0;
    between += share >= 0 && share <= 1;
    share = std::clamp(share, 0.0, 1.0);
    EXPECT_NEAR((*f)[i], plain * (share + (1 - share) / 8), 2e-6 * plain) << i;
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(slowed, 20);
  EXPECT_GT(between, 3);
}

TEST(RopeTablesTest, GrowsWithoutChangingRows) {
  RopeTables tables(*RopeInverseFrequencies({.theta = 10000}, 64));
  tables.Ensure(3);
  const std::vector<float> before(tables.cos(), tables.cos() + 4 * 32);
  tables.Ensure(2000);
  EXPECT_EQ(before, std::vector<float>(tables.cos(), tables.cos() + 4 * 32));
  for (int p : {0, 1, 777, 2000}) {
    for (int i = 0; i < 32; ++i) {
      const double angle = p * std::pow(10000.0, -i / 32.0);
      EXPECT_NEAR(tables.cos()[p * 32 + i], std::cos(angle), 3e-4) << p << " " << i;
      EXPECT_NEAR(tables.sin()[p * 32 + i], std::sin(angle), 3e-4) << p << " " << i;
    }
  }
}

}  // namespace
}  // namespace oscarkv
