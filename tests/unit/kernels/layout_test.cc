#include "kernels/layout.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/q2_encode/byte_order.h"

namespace oscarkv::kernels {
namespace {

class LayoutTest : public testing::TestWithParam<std::tuple<int, Side>> {};

// The 2-bit cells of one side are covered exactly once.
TEST_P(LayoutTest, CodesFillTheSide) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  std::set<std::pair<int, int>> cells;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < d; ++channel) {
      const CodePosition at =
          side == Side::kKey ? KeyPosition(d, token, channel) : ValuePosition(d, token, channel);
      ASSERT_GE(at.word, 0);
      ASSERT_LT(at.word, static_cast<int>(CodesBytes(d) / 4));
      ASSERT_TRUE(at.bit >= 0 && at.bit < 32 && at.bit % 2 == 0);
      ASSERT_TRUE(cells.emplace(at.word, at.bit).second)
          << "token " << token << " channel " << channel;
    }
  }
  EXPECT_EQ(cells.size(), CodesBytes(d) * 4);
}

// The four codes of a packed byte share a byte of the page, at bits 0, 2, 4, 6.
TEST_P(LayoutTest, PackedBytesKeepTheirBits) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  const uint16_t* order = PackedByteOrder(side, d);
  std::set<int> places;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int byte = 0; byte < d / 4; ++byte) {
      const int place = order[token * d / 4 + byte];
      EXPECT_TRUE(places.insert(place).second);
      for (int p = 0; p < 4; ++p) {
        const int channel = 64 * (byte / 16) + 16 * p + byte % 16;
        const CodePosition at =
            side == Side::kKey ? KeyPosition(d, token, channel) : ValuePosition(d, token, channel);
        ASSERT_EQ(32 * at.word + at.bit, 8 * place + 2 * p);
      }
    }
  }
  EXPECT_EQ(*places.rbegin(), static_cast<int>(CodesBytes(d)) - 1);
}

INSTANTIATE_TEST_SUITE_P(Sides, LayoutTest,
                         testing::Combine(testing::Values(64, 128),
                                          testing::Values(Side::kKey, Side::kValue)));

TEST(LayoutTest, MetaIndexIsAPermutation) {
  std::set<int> indices;
  for (int token = 0; token < kPageTokens; ++token) indices.insert(MetaIndex(token));
  EXPECT_EQ(indices.size(), 64u);
  EXPECT_EQ(*indices.begin(), 0);
  EXPECT_EQ(*indices.rbegin(), 63);
}

TEST(LayoutTest, Sizes) {
  const KvShape shape{8, 2, 128};
  EXPECT_EQ(shape.PageLayerBytes(), 9216u);
  EXPECT_EQ(shape.PageBytes(), 73728u);
  EXPECT_EQ(shape.Bf16LayerBytes(), 2u * 2 * 64 * 128 * 2);
  EXPECT_EQ(shape.Bf16BlockBytes(), 8 * shape.Bf16LayerBytes());
  EXPECT_EQ(shape.Bf16SideElements(), 2u * 64 * 128);
  const KvShape centred{8, 2, 128, /*offsets=*/false};
  EXPECT_EQ(centred.PageLayerBytes(), 2u * 4352);
  EXPECT_EQ(centred.Bf16BlockBytes(), shape.Bf16BlockBytes());
  EXPECT_FALSE(centred == shape);
  EXPECT_EQ(ScaleOffset(128, Side::kKey), 4096u);
  EXPECT_EQ(ScaleOffset(128, Side::kValue), 4352u);
  EXPECT_EQ(ScaleOffset(128, Side::kKey, false), 4096u);
  EXPECT_EQ(ScaleOffset(128, Side::kValue, false), 4224u);
}

}  // namespace
}  // namespace oscarkv::kernels
