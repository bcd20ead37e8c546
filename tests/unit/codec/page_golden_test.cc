// The bytes of encoded pages against tests/golden/pages, written by an implementation of
// docs/block_format.md in another language.
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

// The rows of make_pages.py: exact in bf16.
void FillRows(int d, int head, int side, kernels::Bf16* out) {
  uint64_t state = 1000003ull * d + 17 * head + side;
  for (int token = 0; token < 64; ++token) {
    const int exponent = token == 8 ? 8 : token == 9 ? 20 : token == 10 ? -30 : token % 7 - 3;
    for (int c = 0; c < d; ++c) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      float v = std::ldexp(static_cast<float>(static_cast<int>((state >> 33) % 257) - 128) / 32,
                           exponent);
      if (token == 5) v = 37.0f / 32;
      if (token == 6) v = 0;
      if (token == 7 && c == 3) v = 96;
      out[token * d + c] = kernels::ToBf16(v);
      ASSERT_EQ(kernels::ToFloat(out[token * d + c]), v);
    }
  }
}

std::string ReadHex(const std::string& path) {
  std::ifstream in(path);
  std::string hex, line;
  while (in >> line) hex += line;
  return hex;
}

class PageGoldenTest : public ::testing::TestWithParam<kernels::KvShape> {};

TEST_P(PageGoldenTest, EncodeGivesTheGoldenBytes) {
  const kernels::KvShape shape = GetParam();
  CodecOptions options;
  options.data_free = true;
  const auto codec = CreateCodec(options, shape);
  ASSERT_TRUE(codec.ok()) << codec.status();
  std::vector<kernels::Bf16> rows(shape.Bf16LayerBytes() / 2);
  for (int side = 0; side < 2; ++side) {
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      FillRows(shape.head_dim, h, side,
               rows.data() + side * shape.Bf16SideElements() + h * 64 * shape.head_dim);
    }
  }
  const std::string golden =
      ReadHex("tests/golden/pages/page_d" + std::to_string(shape.head_dim) + ".hex");
  ASSERT_EQ(golden.size(), 2 * shape.PageLayerBytes());
  std::vector<uint8_t> page(shape.PageLayerBytes(), 0xcc);
  ASSERT_TRUE((*codec)->EncodeLayer(0, rows.data(), page.data()).ok());
  for (size_t i = 0; i < page.size(); ++i) {
    ASSERT_EQ(ToHex(&page[i], 1), golden.substr(2 * i, 2)) << "byte " << i;
  }
  // Token 9 leaves fp16's range in K and V of every head.
  EXPECT_EQ((*codec)->clamped_rows(), 2u * shape.num_kv_heads);

  // And the golden bytes decode to rows near the originals: within half a step where nothing was
  // clipped or clamped.
  std::vector<kernels::Bf16> decoded(rows.size());
  ASSERT_TRUE((*codec)->DecodeLayer(0, page.data(), decoded.data()).ok());
  for (size_t i = 0; i < rows.size(); ++i) {
    const int token = static_cast<int>(i / shape.head_dim % 64);
    if (token == 5 || token == 6) {
      ASSERT_EQ(decoded[i], rows[i]) << "a constant row is exact; element " << i;
    }
    if (token < 5) {  // values up to 4 * 2^(token - 3), in steps of at most 8/3 * 2^(token - 3)
      ASSERT_NEAR(kernels::ToFloat(decoded[i]), kernels::ToFloat(rows[i]),
                  std::ldexp(1.36f, token - 3))
          << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, PageGoldenTest,
                         ::testing::Values(kernels::KvShape{1, 2, 64}, kernels::KvShape{1, 1, 128}),
                         [](const auto& info) {
                           return "d" + std::to_string(info.param.head_dim);
                         });

}  // namespace
}  // namespace oscarkv
