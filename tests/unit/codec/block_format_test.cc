#include "codec/block_format.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

BlockHeader Header() {
  BlockHeader h;
  h.profile = Profile::kOscar;
  h.body = BlockBody::kPage;
  h.canonical_history = true;
  h.shape = {8, 2, 128};
  h.tokens = 64;
  for (int i = 0; i < 32; ++i) h.codec_fingerprint[i] = static_cast<uint8_t>(i);
  for (int i = 0; i < 32; ++i) h.model_fingerprint[i] = static_cast<uint8_t>(0xe0 + i);
  return h;
}

std::vector<uint8_t> Encode(const BlockHeader& h) {
  std::vector<uint8_t> bytes(kBlockHeaderBytes, 0xcc);
  EXPECT_TRUE(EncodeHeader(h, bytes.data()).ok());
  return bytes;
}

// The format is what is stored in other people's memory: these bytes change only together with
// kBlockFormatVersion.
TEST(BlockFormatTest, GoldenBytes) {
  const std::string golden =
      "4f5343"
      "41524b5642"  // "OSCARKVB"
      "01000000"
      "80000000"  // version 1, 128 bytes
      "01"
      "01"
      "0100"  // oscar, page, canonical history
      "08000000"
      "02000000"
      "80000000"  // 8 layers, 2 kv heads, head_dim 128
      "40000000"
      "00000000"          // 64 tokens
      "0020010000000000"  // 73728 = 8 * 2 * 4608 bytes of body
      "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
      "e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
      "000000000000000000000000";
  const std::vector<uint8_t> bytes = Encode(Header());
  EXPECT_EQ(ToHex(bytes.data(), 124), golden);
  EXPECT_EQ(ToHex(bytes.data() + 124, 4), "0ebbd5d8");
}

TEST(BlockFormatTest, RoundTripOfEveryBody) {
  for (const BlockBody body : {BlockBody::kPage, BlockBody::kBf16, BlockBody::kHandover}) {
    for (const bool canonical : {false, true}) {
      BlockHeader h = Header();
      h.body = body;
      h.canonical_history = canonical;
      if (body == BlockBody::kHandover) h.tokens = 17;
      const auto decoded = DecodeHeader(Encode(h));
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(*decoded, h);
      EXPECT_TRUE(CheckHeader(*decoded, h).ok());
    }
  }
  BlockHeader h = Header();
  h.profile = Profile::kBf16;
  h.body = BlockBody::kBf16;
  h.shape = {kMaxLayers, kMaxKvHeads, 64};
  EXPECT_EQ(*DecodeHeader(Encode(h)), h);
}

TEST(BlockFormatTest, PagesWithoutOffsets) {
  BlockHeader h = Header();
  h.profile = Profile::kShapedSym;
  h.shape.offsets = false;
  const std::vector<uint8_t> bytes = Encode(h);
  EXPECT_EQ(bytes[16], 3);
  EXPECT_EQ(ToHex(bytes.data() + 40, 8), "0010010000000000");  // 69632 = 8 * 2 * 4352
  const auto decoded = DecodeHeader(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, h);
  EXPECT_EQ(BlockBytes(BlockBody::kPage, h.shape), 128u + 69632);
  EXPECT_EQ(SliceTable(BlockBody::kPage, h.shape)[1].length, 8704u);
  // Profiles do not mix, in either direction.
  BlockHeader shaped = Header();
  shaped.profile = Profile::kShaped;
  EXPECT_THAT(std::string(CheckHeader(*decoded, shaped).message()),
              AllOf(HasSubstr("profile is shaped-sym"), HasSubstr("expects shaped")));
  EXPECT_EQ(CheckHeader(shaped, h).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(BlockFormatTest, WriterRefusesWhatNoReaderTakes) {
  struct Case {
    const char* name;
    std::function<void(BlockHeader*)> change;
    const char* error;
  };
  const std::vector<Case> cases = {
      {"profile", [](BlockHeader* h) { h->profile = static_cast<Profile>(9); }, "profile 9"},
      {"body 0", [](BlockHeader* h) { h->body = static_cast<BlockBody>(0); }, "body kind 0"},
      {"body 4", [](BlockHeader* h) { h->body = static_cast<BlockBody>(4); }, "body kind 4"},
      {"page of bf16", [](BlockHeader* h) { h->profile = Profile::kBf16; },
       "profile bf16, which has none"},
      {"partial page", [](BlockHeader* h) { h->tokens = 63; },
       "63 tokens, a 2-bit page block holds 64 to 64"},
      {"no tokens", [](BlockHeader* h) { h->body = BlockBody::kHandover, h->tokens = 0; },
       "0 tokens"},
      {"65 tokens", [](BlockHeader* h) { h->body = BlockBody::kHandover, h->tokens = 65; },
       "65 tokens"},
      {"no layers", [](BlockHeader* h) { h->shape.num_layers = 0; }, "0 layers, 1 to 1024"},
      {"layers", [](BlockHeader* h) { h->shape.num_layers = 1025; }, "1025 layers"},
      {"kv heads", [](BlockHeader* h) { h->shape.num_kv_heads = -1; }, "-1 kv heads"},
      {"no offsets", [](BlockHeader* h) { h->shape.offsets = false; },
       "without offset planes in profile oscar"},
      {"offsets", [](BlockHeader* h) { h->profile = Profile::kShapedSym; },
       "with offset planes in profile shaped-sym"},
      {"head_dim", [](BlockHeader* h) { h->shape.head_dim = 96; }, "head_dim 96, 64 and 128"},
  };
  for (const Case& c : cases) {
    BlockHeader h = Header();
    c.change(&h);
    uint8_t out[kBlockHeaderBytes];
    const absl::Status s = EncodeHeader(h, out);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(std::string(s.message()), HasSubstr(c.error)) << c.name;
  }
}

TEST(BlockFormatTest, EveryDamagedBitIsSeen) {
  const std::vector<uint8_t> good = Encode(Header());
  for (size_t bit = 0; bit < 8 * kBlockHeaderBytes; ++bit) {
    std::vector<uint8_t> bad = good;
    bad[bit / 8] ^= 1 << (bit % 8);
    EXPECT_EQ(DecodeHeader(bad).status().code(), absl::StatusCode::kDataLoss) << "bit " << bit;
  }
}

TEST(BlockFormatTest, EveryTruncationIsSeen) {
  const std::vector<uint8_t> good = Encode(Header());
  for (size_t n = 0; n < good.size(); ++n) {
    const auto h = DecodeHeader(absl::MakeConstSpan(good).first(n));
    EXPECT_EQ(h.status().code(), absl::StatusCode::kDataLoss) << n;
  }
  std::vector<uint8_t> whole_block = good;
  whole_block.resize(1000, 0xff);
  EXPECT_TRUE(DecodeHeader(whole_block).ok());
}

// Changes bytes and makes the CRC right again: what a writer with other ideas, or an attacker,
// would send.
std::vector<uint8_t> Forge(size_t offset, std::vector<uint8_t> value) {
  std::vector<uint8_t> bytes = Encode(Header());
  std::copy(value.begin(), value.end(), bytes.begin() + offset);
  const uint32_t crc = Crc32c(bytes.data(), 124);
  for (int i = 0; i < 4; ++i) bytes[124 + i] = static_cast<uint8_t>(crc >> (8 * i));
  return bytes;
}

TEST(BlockFormatTest, ForgedFieldsAreRefused) {
  struct Case {
    size_t offset;
    std::vector<uint8_t> value;
    absl::StatusCode code;
    const char* error;
  };
  const std::vector<Case> cases = {
      {0, {'P'}, absl::StatusCode::kDataLoss, "instead of OSCARKVB"},
      {8,
       {2},
       absl::StatusCode::kFailedPrecondition,
       "format version is 2 in the block, this reader expects 1"},
      {12, {0, 1}, absl::StatusCode::kDataLoss, "says it has 256 bytes"},
      {12, {0, 0}, absl::StatusCode::kDataLoss, "says it has 0 bytes"},
      {12, {0xff, 0xff, 0xff, 0xff}, absl::StatusCode::kDataLoss, "says it has 4294967295 bytes"},
      {16, {7}, absl::StatusCode::kDataLoss, "profile 7"},
      {16, {3}, absl::StatusCode::kDataLoss, "the body has 73728 bytes"},
      {17, {4}, absl::StatusCode::kDataLoss, "body kind 4"},
      {18, {3}, absl::StatusCode::kDataLoss, "unknown flags 0x3"},
      {20, {0xff, 0xff, 0xff, 0xff}, absl::StatusCode::kDataLoss, "2147483647 layers"},
      {24, {0}, absl::StatusCode::kDataLoss, "0 kv heads"},
      {28, {65}, absl::StatusCode::kDataLoss, "head_dim 65"},
      {32, {3}, absl::StatusCode::kDataLoss, "3 tokens"},
      {36, {1}, absl::StatusCode::kDataLoss, "reserved"},
      {40, {1}, absl::StatusCode::kDataLoss, "the body has 73729 bytes"},
      {123, {1}, absl::StatusCode::kDataLoss, "reserved"},
  };
  for (const Case& c : cases) {
    const absl::Status s = DecodeHeader(Forge(c.offset, c.value)).status();
    EXPECT_EQ(s.code(), c.code) << c.offset << ": " << s;
    EXPECT_THAT(std::string(s.message()), HasSubstr(c.error)) << c.offset;
  }
}

// A later version may have a longer header; a reader of today still tells it from damage.
TEST(BlockFormatTest, LongerHeaderOfALaterVersion) {
  std::vector<uint8_t> bytes = Encode(Header());
  bytes.resize(256, 0);
  bytes[8] = 2;
  bytes[12] = 0, bytes[13] = 1;
  const uint32_t crc = Crc32c(bytes.data(), 252);
  std::memcpy(bytes.data() + 252, &crc, 4);
  EXPECT_EQ(DecodeHeader(bytes).status().code(), absl::StatusCode::kFailedPrecondition);
  bytes[200] ^= 1;
  EXPECT_EQ(DecodeHeader(bytes).status().code(), absl::StatusCode::kDataLoss);
}

TEST(BlockFormatTest, MismatchNamesBothSides) {
  struct Case {
    std::function<void(BlockHeader*)> change;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases = {
      {[](BlockHeader* h) { h->profile = Profile::kBf16; }, {"profile is bf16", "expects oscar"}},
      {[](BlockHeader* h) { h->shape.num_layers = 9; },
       {"shape is 9 layers x 2 kv heads x head_dim 128",
        "expects 8 layers x 2 kv heads x head_dim 128"}},
      {[](BlockHeader* h) { h->model_fingerprint[0] = 0x12; },
       {"model fingerprint is 12e1e2", "expects e0e1e2"}},
      {[](BlockHeader* h) { h->codec_fingerprint[0] = 0x34; },
       {"codec fingerprint is 340102", "expects 000102"}},
      {[](BlockHeader* h) { h->canonical_history = false; },
       {"prefill history is exact", "expects canonical"}},
      {[](BlockHeader* h) { h->body = BlockBody::kBf16; }, {"body is bf16", "expects 2-bit page"}},
      {[](BlockHeader* h) { h->tokens = 5; }, {"number of tokens is 5", "expects 64"}},
  };
  for (const Case& c : cases) {
    BlockHeader block = Header();
    c.change(&block);
    const absl::Status s = CheckHeader(block, Header());
    EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(s.message()), AllOf(HasSubstr(c.says[0]), HasSubstr(c.says[1])));
  }
}

TEST(BlockFormatTest, SizesAndSlices) {
  const kernels::KvShape s = {8, 2, 128};
  EXPECT_EQ(BlockBytes(BlockBody::kPage, s), 128 + 8 * 2 * 4608u);
  EXPECT_EQ(BlockBytes(BlockBody::kBf16, s), 128 + 8 * 2 * 2 * 64 * 128 * 2u);
  EXPECT_EQ(BlockBytes(BlockBody::kHandover, s), BlockBytes(BlockBody::kBf16, s));
  for (const BlockBody body : {BlockBody::kPage, BlockBody::kBf16, BlockBody::kHandover}) {
    for (const kernels::KvShape& shape :
         {s, kernels::KvShape{1, 1, 64}, kernels::KvShape{36, 8, 128}}) {
      const std::vector<BlockSlice> slices = SliceTable(body, shape);
      ASSERT_EQ(slices.size(), 1u + shape.num_layers);
      EXPECT_EQ(slices[0], (BlockSlice{0, kBlockHeaderBytes, 0}));
      uint64_t at = 0;
      for (const BlockSlice& slice : slices) {
        EXPECT_EQ(slice.offset, at);
        EXPECT_EQ(slice.offset % 128, 0u);
        at += slice.length;
      }
      EXPECT_EQ(at, BlockBytes(body, shape));
      EXPECT_EQ(slices[1].length, BodyLayerBytes(body, shape));
    }
  }
}

TEST(BlockFormatTest, ChecksumsCoverTheSlice) {
  std::vector<uint8_t> bytes(kBlockHeaderBytes + 2560, 7);
  std::vector<BlockSlice> slices = SliceTable(BlockBody::kPage, {1, 1, 64});
  for (BlockSlice& slice : slices) ChecksumSlice(bytes.data() + slice.offset, &slice);
  EXPECT_EQ(slices[0].crc32c, Crc32cPortable(bytes.data(), 128));
  EXPECT_EQ(slices[1].crc32c, Crc32cPortable(bytes.data() + 128, 2560));
  const uint32_t before = slices[1].crc32c;
  bytes.back() ^= 1;
  ChecksumSlice(bytes.data() + slices[1].offset, &slices[1]);
  EXPECT_NE(slices[1].crc32c, before);
}

TEST(BlockFormatTest, ZeroTailKeepsTheRowsBefore) {
  const kernels::KvShape s = {2, 3, 64};
  for (const int tokens : {1, 63, 64}) {
    std::vector<kernels::Bf16> body(s.Bf16BlockBytes() / 2, 0x3f80);
    ZeroTail(s, tokens, body.data());
    for (size_t i = 0; i < body.size(); ++i) {
      const int token = static_cast<int>(i / 64 % 64);
      ASSERT_EQ(body[i], token < tokens ? 0x3f80 : 0)
          << "element " << i << ", " << tokens << " tokens";
    }
  }
}

}  // namespace
}  // namespace oscarkv
