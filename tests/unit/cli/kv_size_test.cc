#include "cli/kv_size.h"

#include <gtest/gtest.h>

#include "codec/block_format.h"

namespace oscarkv::cli {
namespace {

constexpr kernels::KvShape kQwen3_8B = {36, 8, 128};

TEST(KvSize, OfATokenIsThatOfTheDocs) {
  const KvSize size = ComputeKvSize(kQwen3_8B, 32768, /*coded=*/true);
  // The headers of blocks, 128 bytes each, come on top.
  EXPECT_EQ(size.token_bytes_stored, 20'736 + 2);
  EXPECT_EQ(size.token_bytes_bf16, 147'456 + 2);
}

TEST(KvSize, OfAContextCountsItsBlocks) {
  const uint64_t page = BlockBytes(BlockBody::kPage, kQwen3_8B);
  const uint64_t bf16 = BlockBytes(BlockBody::kBf16, kQwen3_8B);
  const struct {
    int64_t context;
    uint64_t sinks, pages, handover, all;
  } cases[] = {
      {1, 0, 0, 1, 1},   {64, 1, 0, 0, 1},  {65, 1, 0, 1, 2},
      {128, 1, 1, 1, 2}, {384, 1, 5, 4, 6}, {1000, 1, 14, 5, 16},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.context);
    const KvSize size = ComputeKvSize(kQwen3_8B, c.context, true);
    EXPECT_EQ(size.user_bytes_stored, c.sinks * bf16 + c.pages * page);
    EXPECT_EQ(size.user_bytes_handover, c.handover * bf16);
    EXPECT_EQ(size.user_bytes_bf16, c.all * bf16);
    const KvSize plain = ComputeKvSize(kQwen3_8B, c.context, false);
    EXPECT_EQ(plain.user_bytes_stored + plain.user_bytes_handover, c.all * bf16);
    EXPECT_EQ(plain.worker_bytes, c.all * bf16);
    EXPECT_LE(size.worker_bytes, plain.worker_bytes + c.pages * page);
  }
}

}  // namespace
}  // namespace oscarkv::cli
