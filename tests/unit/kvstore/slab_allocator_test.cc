#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "kvstore/core/allocator.h"
#include "support.h"

namespace oscarkv {
namespace {

StoredKey Owner(uint64_t n) {
  return {0, kvtest::Key(n)};
}

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
      const auto extent = AllocateOne(a.get(), c, Owner(step));
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
  while (const auto e = AllocateOne(a.get(), small, Owner(1))) extents.push_back(*e);
  EXPECT_EQ(extents.size(), 8u);
  EXPECT_FALSE(AllocateOne(a.get(), large, Owner(2)).has_value());
  for (int i = 0; i < 4; ++i) a->Free(extents[i]);
  EXPECT_TRUE(AllocateOne(a.get(), large, Owner(2)).has_value());
}

TEST(SlabAllocatorTest, TakesFromALargerClassWhenAsked) {
  auto a = MakeSlabAllocator(64 << 10, 64 << 10);
  const uint32_t twice = *a->ClassOf(16 << 10), small = *a->ClassOf(8 << 10),
                 tiny = *a->ClassOf(4 << 10);
  ASSERT_TRUE(AllocateOne(a.get(), twice, Owner(1)).has_value());
  EXPECT_FALSE(AllocateOne(a.get(), small, Owner(2)).has_value());
  const auto larger = a->AllocateLarger(small, Owner(2));
  ASSERT_TRUE(larger.has_value());
  EXPECT_EQ(larger->size_class, twice);
  EXPECT_EQ(a->usage().used, 32u << 10);
  EXPECT_FALSE(a->AllocateLarger(tiny, Owner(3)).has_value()) << "four times the size";
  a->Free(*larger);
  EXPECT_EQ(a->usage().used, 16u << 10);
}

TEST(SlabAllocatorTest, DrainsTheSlabWithTheLeastInIt) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10), large = *a->ClassOf(64 << 10);
  std::vector<Extent> extents;
  for (int i = 0; i < 8; ++i) extents.push_back(*AllocateOne(a.get(), small, Owner(i)));
  EXPECT_TRUE(a->BeginDrain(large).empty()) << "nothing is free";
  // One left in the first slab, three in the second.
  for (int i : {0, 1, 2, 7}) a->Free(extents[i]);
  EXPECT_TRUE(a->BeginDrain(small).empty()) << "a class does not drain for itself";
  const auto items = a->BeginDrain(large);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].owner, Owner(3));
  EXPECT_EQ(items[0].extent, extents[3]);
  // While it is drained, no extent comes from it.
  const auto moved = AllocateOne(a.get(), small, Owner(3));
  ASSERT_TRUE(moved.has_value());
  EXPECT_EQ(moved->offset / (64 << 10), extents[4].offset / (64 << 10));
  EXPECT_FALSE(AllocateOne(a.get(), small, Owner(9)).has_value());
  a->Free(extents[3]);
  a->EndDrain();
  EXPECT_TRUE(AllocateOne(a.get(), large, Owner(10)).has_value());
}

TEST(SlabAllocatorTest, AnAbandonedDrainLeavesTheSlabUsable) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10), large = *a->ClassOf(64 << 10);
  std::vector<Extent> extents;
  for (int i = 0; i < 8; ++i) extents.push_back(*AllocateOne(a.get(), small, Owner(i)));
  for (int i : {0, 1, 6, 7}) a->Free(extents[i]);
  ASSERT_EQ(a->BeginDrain(large).size(), 2u);
  a->EndDrain();
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(AllocateOne(a.get(), small, Owner(20 + i)).has_value());
  EXPECT_FALSE(AllocateOne(a.get(), small, Owner(30)).has_value());
}

TEST(SlabAllocatorTest, ABatchTakesWhatThereIs) {
  auto a = MakeSlabAllocator(128 << 10, 64 << 10);
  const uint32_t small = *a->ClassOf(16 << 10);
  std::vector<StoredKey> owners;
  for (int i = 0; i < 10; ++i) owners.push_back(Owner(i));
  std::vector<Extent> extents(10);
  EXPECT_EQ(a->Allocate(small, {}, nullptr), 0u);
  ASSERT_EQ(a->Allocate(small, owners, extents.data()), 8u) << "two slabs of four";
  std::set<uint64_t> offsets, generations;
  for (int i = 0; i < 8; ++i) {
    offsets.insert(extents[i].offset);
    generations.insert(extents[i].generation);
  }
  EXPECT_EQ(offsets.size(), 8u);
  EXPECT_EQ(generations.size(), 8u);
  EXPECT_EQ(a->usage().used, 128u << 10);
  EXPECT_EQ(a->Allocate(small, owners, extents.data()), 0u);
}

// Threads allocate, free and drain at the same time; each marks its extents in a map of the arena.
TEST(SlabAllocatorTest, ThreadsGetDistinctMemory) {
  constexpr uint64_t kUnit = 4096, kArena = 256 * kUnit;
  auto a = MakeSlabAllocator(kArena, 16 * kUnit);
  std::vector<std::atomic<int>> taken(kArena / kUnit);
  std::atomic<int> overlaps{0};
  const auto mark = [&](const Extent& e, int by) {
    for (uint64_t at = e.offset; at < e.offset + a->ClassBytes(e.size_class); at += kUnit)
      overlaps += taken[at / kUnit].fetch_add(by) != (by > 0 ? 0 : 1);
  };
  const auto work = [&](int thread) {
    std::mt19937 rng(thread);
    std::vector<Extent> held;
    for (int step = 0; step < 3000; ++step) {
      const uint32_t c = *a->ClassOf(kUnit << (rng() % 3));
      Extent got[5];
      const std::vector<StoredKey> owners(1 + rng() % 5, Owner(thread));
      const size_t n = a->Allocate(c, owners, got);
      for (size_t i = 0; i < n; ++i) mark(got[i], 1);
      held.insert(held.end(), got, got + n);
      while (held.size() > 20 || (n < owners.size() && !held.empty())) {
        std::swap(held[rng() % held.size()], held.back());
        mark(held.back(), -1);
        a->Free(held.back());
        held.pop_back();
        if (rng() % 4 == 0) break;
      }
      if (rng() % 8 == 0 && !a->BeginDrain(c).empty()) a->EndDrain();
    }
    for (const Extent& e : held) {
      mark(e, -1);
      a->Free(e);
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(work, t);
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(overlaps, 0);
  EXPECT_EQ(a->usage().used, 0u);
  EXPECT_EQ(a->usage().idle, kArena);
}

}  // namespace
}  // namespace oscarkv
