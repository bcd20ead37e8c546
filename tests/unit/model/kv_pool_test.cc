#include "model/kv_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>
#include <vector>

namespace oscarkv {
namespace {

constexpr kernels::KvShape kShape{2, 1, 64};

struct Memory {
  Memory(int pages, int blocks)
      : pages_bytes(pages * kShape.PageBytes()), blocks_bytes(blocks * kShape.Bf16BlockBytes()) {}
  std::vector<uint8_t> pages_bytes, blocks_bytes;
};

TEST(BlockOfTest, WindowFollowsTheTile) {
  struct {
    int position, first;
  } const cases[] = {{0, 1},   {63, 1},  {64, 1},  {319, 1}, {320, 1},
                     {383, 1}, {384, 2}, {447, 2}, {448, 3}, {8191, 123}};
  for (const auto& c : cases) EXPECT_EQ(FirstWindowBlock(c.position), c.first) << c.position;
}

TEST(KvPoolTest, SlotsAreDisjointAndInside) {
  Memory m(3, 2);
  KvPool pool(kShape, absl::MakeSpan(m.pages_bytes), absl::MakeSpan(m.blocks_bytes));
  EXPECT_EQ(pool.num_pages(), 3);
  EXPECT_EQ(pool.num_blocks(), 2);
  std::set<const void*> starts;
  for (int i = 0; i < 3; ++i) {
    const int32_t id = pool.AllocatePage();
    ASSERT_GE(id, 0);
    EXPECT_TRUE(starts.insert(pool.page(id)).second);
    EXPECT_EQ(pool.page(id), pool.page_base() + id * kShape.PageBytes());
    EXPECT_EQ(pool.page_layer(id, 1), pool.page(id) + kShape.PageLayerBytes());
  }
  EXPECT_EQ(pool.AllocatePage(), -1);
  EXPECT_EQ(pool.free_pages(), 0);
  const int32_t a = pool.AllocateBlock(), b = pool.AllocateBlock();
  EXPECT_EQ(pool.AllocateBlock(), -1);
  EXPECT_EQ(std::abs(pool.block(a) - pool.block(b)),
            static_cast<ptrdiff_t>(kShape.Bf16BlockBytes() / 2));
  EXPECT_EQ(reinterpret_cast<const uint8_t*>(pool.block_layer(a, 1)) -
                reinterpret_cast<const uint8_t*>(pool.block(a)),
            static_cast<ptrdiff_t>(kShape.Bf16LayerBytes()));
  pool.FreeBlock(a);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(pool.AllocateBlock(), a);
}

TEST(KvPoolTest, OnlyWholeSlotsCount) {
  std::vector<uint8_t> pages(2 * kShape.PageBytes() - 1), blocks(kShape.Bf16BlockBytes() - 1);
  const KvPool pool(kShape, absl::MakeSpan(pages), absl::MakeSpan(blocks));
  EXPECT_EQ(pool.num_pages(), 1);
  EXPECT_EQ(pool.num_blocks(), 0);
}

TEST(KvPoolDeathTest, FreeingTwiceOrAForeignIdAborts) {
  Memory m(2, 2);
  KvPool pool(kShape, absl::MakeSpan(m.pages_bytes), absl::MakeSpan(m.blocks_bytes));
  const int32_t page = pool.AllocatePage();
  pool.FreePage(page);
  EXPECT_DEATH(pool.FreePage(page), "not allocated");
  EXPECT_DEATH(pool.FreePage(2), "not allocated");
  EXPECT_DEATH(pool.FreeBlock(-1), "not allocated");
}

TEST(KvPoolTest, ManyThreads) {
  Memory m(8, 8);
  KvPool pool(kShape, absl::MakeSpan(m.pages_bytes), absl::MakeSpan(m.blocks_bytes));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        SequenceKv kv(&pool);
        // The slot is ours alone: what is written stays until it is freed.
        if (!kv.EnsurePage(3) || !kv.EnsureBlock(0)) continue;
        const uint8_t mark = static_cast<uint8_t>(i);
        *pool.page(kv.at(3).page) = mark;
        *pool.block(kv.at(0).block) = mark;
        EXPECT_EQ(*pool.page(kv.at(3).page), mark);
        EXPECT_EQ(*pool.block(kv.at(0).block), mark);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(pool.free_pages(), 8);
  EXPECT_EQ(pool.free_blocks(), 8);
}

TEST(SequenceKvTest, TakesAndReturnsSlots) {
  Memory m(2, 2);
  KvPool pool(kShape, absl::MakeSpan(m.pages_bytes), absl::MakeSpan(m.blocks_bytes));
  {
    SequenceKv kv(&pool);
    EXPECT_TRUE(kv.EnsureBlock(2));
    EXPECT_TRUE(kv.EnsureBlock(2));  // the same slot
    EXPECT_EQ(kv.num_blocks(), 3);
    EXPECT_EQ(kv.at(0).block, -1);
    EXPECT_EQ(pool.free_blocks(), 1);
    EXPECT_TRUE(kv.EnsureBlock(0));
    EXPECT_FALSE(kv.EnsureBlock(7));
    EXPECT_EQ(kv.num_blocks(), 3);  // a failed request leaves the table as it was
    EXPECT_TRUE(kv.EnsurePage(2));
    kv.ReleaseBlock(2);
    kv.ReleaseBlock(2);
    kv.ReleaseBlock(9);
    EXPECT_GE(kv.at(2).page, 0);
    EXPECT_EQ(kv.at(2).block, -1);
    EXPECT_EQ(pool.free_blocks(), 1);
  }
  EXPECT_EQ(pool.free_blocks(), 2);
  EXPECT_EQ(pool.free_pages(), 2);
}

TEST(SequenceKvTest, MovesLeaveNothingBehind) {
  Memory m(2, 2), other_memory(1, 1);
  KvPool pool(kShape, absl::MakeSpan(m.pages_bytes), absl::MakeSpan(m.blocks_bytes));
  KvPool other(kShape, absl::MakeSpan(other_memory.pages_bytes),
               absl::MakeSpan(other_memory.blocks_bytes));
  SequenceKv a(&pool);
  ASSERT_TRUE(a.EnsureBlock(0));
  SequenceKv b(std::move(a));
  EXPECT_EQ(b.num_blocks(), 1);
  SequenceKv c(&other);
  ASSERT_TRUE(c.EnsurePage(0));
  c = std::move(b);
  EXPECT_EQ(&c.pool(), &pool);
  EXPECT_EQ(other.free_pages(), 1);
  EXPECT_EQ(pool.free_blocks(), 1);
  c.Clear();
  EXPECT_EQ(pool.free_blocks(), 2);
  EXPECT_EQ(c.num_blocks(), 0);
}

}  // namespace
}  // namespace oscarkv
