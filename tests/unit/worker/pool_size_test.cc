#include "worker/pool_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace oscarkv::worker {
namespace {

using testing::HasSubstr;

const kernels::KvShape kShape{2, 2, 64};
const uint64_t kPage = kShape.PageBytes(), kBlock = kShape.Bf16BlockBytes();

TEST(PoolSize, DefaultsAndSizesAskedFor) {
  const PoolDefaults defaults{100, 30};
  auto slots = SizePools({}, kShape, true, defaults, 0);
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->pages, 100);
  EXPECT_EQ(slots->blocks, 30);
  slots = SizePools({7 * kPage + 1, 3 * kBlock, 0}, kShape, true, defaults, 0);
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->pages, 7);
  EXPECT_EQ(slots->blocks, 3);
  slots = SizePools({7 * kPage, 0, 0}, kShape, /*coded=*/false, defaults, 0);
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->pages, 0);
  EXPECT_EQ(slots->blocks, 30);
  const auto none = SizePools({kPage - 1, 0, 0}, kShape, true, defaults, 0);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("--page-pool"));
}

TEST(PoolSize, AFractionOfWhatIsFree) {
  const PoolDefaults both{100, 100};
  const uint64_t hundred = 100 * (kPage + kBlock);
  // In proportion, whether that is more than the defaults or less.
  for (const double factor : {0.5, 1.0, 7.0}) {
    const auto slots = SizePools({0, 0, 0.5}, kShape, true, both,
                                 static_cast<uint64_t>(2 * factor * static_cast<double>(hundred)));
    ASSERT_TRUE(slots.ok());
    EXPECT_NEAR(static_cast<double>(slots->pages), 100 * factor, 1);
    EXPECT_NEAR(static_cast<double>(slots->blocks), 100 * factor, 1);
    EXPECT_LE(slots->pages * kPage + slots->blocks * kBlock, factor * hundred);
  }
  // A pool of a given size keeps it, the other gets what that leaves.
  auto slots = SizePools({0, 10 * kBlock, 0.5}, kShape, true, both, 2 * (10 * kBlock + 55 * kPage));
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->blocks, 10);
  EXPECT_NEAR(static_cast<double>(slots->pages), 55, 1);
  // Blocks of which more would not help.
  slots = SizePools({0, 0, 0.5}, kShape, true, {100, 10, /*more_blocks_help=*/false},
                    2 * (10 * kBlock + 500 * kPage));
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->blocks, 10);
  EXPECT_NEAR(static_cast<double>(slots->pages), 500, 1);
  // Without pages everything is blocks.
  slots = SizePools({0, 0, 0.5}, kShape, /*coded=*/false, {100, 10, false}, 2 * 77 * kBlock);
  ASSERT_TRUE(slots.ok());
  EXPECT_EQ(slots->pages, 0);
  EXPECT_NEAR(static_cast<double>(slots->blocks), 77, 1);
}

TEST(PoolSize, NoRoom) {
  for (const uint64_t free : {uint64_t{0}, kBlock, 20 * kBlock}) {
    const auto slots = SizePools({0, 10 * kBlock, 0.5}, kShape, true, {100, 100}, free);
    EXPECT_EQ(slots.status().code(), absl::StatusCode::kInvalidArgument) << free;
    EXPECT_THAT(std::string(slots.status().message()), HasSubstr("--pool-fraction=0.5")) << free;
  }
}

}  // namespace
}  // namespace oscarkv::worker
