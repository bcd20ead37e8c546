#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kvstore/core/allocator.h"
#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Key;

TEST(SlabAllocatorTest, RefusesSizesThatCannotBeStored) {
  auto a = MakeSlabAllocator(1 << 20, 64 << 10);
  EXPECT_EQ(a->ClassOf(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(a->ClassOf((64 << 10) + 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(a->ClassOf(64 << 10).ok());
  EXPECT_EQ(a->max_bytes(), 64u << 10);
}

TEST(SlabAllocatorTest, ClassesWasteAtMostAThirdAndFrequentSizesNothing) {
  auto a = MakeSlabAllocator(64 << 20, 1 << 20);
  for (uint64_t size : {1000, 5000, 9216, 36864, 73728, 165888, 524416}) {
    const uint32_t first = *a->ClassOf(size);
    EXPECT_GE(a->ClassBytes(first), size);
    EXPECT_LE(a->ClassBytes(first), size + size / 2);
    uint32_t later = first;
    for (int i = 0; i < 64; ++i) later = *a->ClassOf(size);
    EXPECT_EQ(a->ClassBytes(later), (size + 127) / 128 * 128);
  }
}

TEST(SlabAllocatorTest, ExtentsNeverOverlapAndGenerationsNeverRepeat) {
  const uint64_t capacity = 1 << 20;
  auto a = MakeSlabAllocator(capacity, 64 << 10);
  std::mt19937_64 rng(7);
  struct Held {
    Extent extent;
    uint64_t bytes;
  };
  std::map<uint64_t, Held> held;  // by offset
  uint64_t last_generation = 0, used = 0;
  for (int step = 0; step < 20000; ++step) {
    const uint64_t size = std::vector<uint64_t>{300, 4608, 9216, 20000, 65536}[rng() % 5];
    if (rng() % 2 == 0) {
      const uint32_t c = *a->ClassOf(size);
      const auto extent = a->Allocate(c, Key(step));
      if (!extent) continue;
      const uint64_t bytes = a->ClassBytes(c);
      ASSERT_GT(extent->generation, last_generation);
      last_generation = extent->generation;
      ASSERT_LE(extent->offset + bytes, capacity);
      const auto next = held.lower_bound(extent->offset);
      if (next != held.end()) {
        ASSERT_LE(extent->offset + bytes, next->first);
      }
      if (next != held.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second.bytes, extent->offset);
      }
      held[extent->offset] = {*extent, bytes};
      used += bytes;
    } else if (!held.empty()) {
      auto it = held.lower_bound(rng() % capacity);
      if (it == held.end()) it = held.begin();
      a->Free(it->second.extent);
      a->Free(it->second.extent);  // a second time: nothing happens
      used -= it->second.bytes;
      held.erase(it);
    }
    ASSERT_EQ(a->usage().used, used);
  }
  for (const auto& [offset, h] : held) a->Free(h.extent);
  EXPECT_EQ(a->usage().used, 0u);
  EXPECT_EQ(a->usage().idle, capacity);
}

TEST(SlabAllocatorTest, AnEmptySlabServesAnotherClass) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10), large = *a->ClassOf(64 << 10);
  std::vector<Extent> extents;
  while (const auto e = a->Allocate(small, Key(1))) extents.push_back(*e);
  EXPECT_EQ(extents.size(), 8u);
  EXPECT_FALSE(a->Allocate(large, Key(2)).has_value());
  for (int i = 0; i < 4; ++i) a->Free(extents[i]);
  EXPECT_TRUE(a->Allocate(large, Key(2)).has_value());
}

TEST(SlabAllocatorTest, DrainsTheSlabWithTheLeastInIt) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10), large = *a->ClassOf(64 << 10);
  std::vector<Extent> extents;
  for (int i = 0; i < 8; ++i) extents.push_back(*a->Allocate(small, Key(i)));
  EXPECT_TRUE(a->BeginDrain(large).empty()) << "nothing is free";
  // One left in the first slab, three in the second.
  for (int i : {0, 1, 2, 7}) a->Free(extents[i]);
  EXPECT_TRUE(a->BeginDrain(small).empty()) << "a class does not drain for itself";
  const auto items = a->BeginDrain(large);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].owner, Key(3));
  EXPECT_EQ(items[0].extent, extents[3]);
  // While it is drained, no extent comes from it.
  const auto moved = a->Allocate(small, Key(3));
  ASSERT_TRUE(moved.has_value());
  EXPECT_EQ(moved->offset / (64 << 10), extents[4].offset / (64 << 10));
  EXPECT_FALSE(a->Allocate(small, Key(9)).has_value());
  a->Free(extents[3]);
  a->EndDrain();
  EXPECT_TRUE(a->Allocate(large, Key(10)).has_value());
}

TEST(SlabAllocatorTest, AnAbandonedDrainLeavesTheSlabUsable) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10), large = *a->ClassOf(64 << 10);
  std::vector<Extent> extents;
  for (int i = 0; i < 8; ++i) extents.push_back(*a->Allocate(small, Key(i)));
  for (int i : {0, 1, 6, 7}) a->Free(extents[i]);
  ASSERT_EQ(a->BeginDrain(large).size(), 2u);
  a->EndDrain();
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(a->Allocate(small, Key(20 + i)).has_value());
  EXPECT_FALSE(a->Allocate(small, Key(30)).has_value());
}

}  // namespace
}  // namespace oscarkv
