// Locks. Nearly all traffic is a few sizes, so a lock per size class alone would be nearly one for
// the process: batches take it once. What a slab holds belongs to the class that it serves and is
// guarded by that class's lock; only a slab that changes its class passes through the list of idle
// ones. Classes are never removed, so finding a size's class takes no lock once it is there.
//
// Order: drain, class, idle; a second class never.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "kvstore/core/allocator.h"

namespace oscarkv {
namespace {

constexpr uint64_t kAlign = 128;
constexpr int kExactAfter = 32;      // requests before a size gets its own class
constexpr size_t kMaxExact = 32;     // classes of that sort; the arena cannot be split without end
constexpr size_t kMaxCounted = 256;  // sizes whose requests are counted
constexpr size_t kMaxClasses = 2 * 64 + kMaxExact;  // two of each power of two, and the exact ones
constexpr uint32_t kNone = UINT32_MAX;

uint64_t RoundUp(uint64_t size) {
  return (size + kAlign - 1) / kAlign * kAlign;
}

// The smallest of 2^n and 1.5 * 2^n, n >= 8, that holds `size`.
uint64_t GeometricBytes(uint64_t size) {
  const uint64_t power = std::max<uint64_t>(256, std::bit_ceil(size));
  return power / 4 * 3 >= size && power > 256 ? power / 4 * 3 : power;
}

struct Slot {
  uint64_t generation = 0;  // 0: free
  StoredKey owner;
};

struct Slab {
  uint32_t partial_at = kNone;  // position in its class's `partial`
  int failed_drains = 0;
  std::vector<uint32_t> free;
  std::vector<Slot> slots;
  size_t used() const { return slots.size() - free.size(); }
};

struct SizeClass {
  explicit SizeClass(uint64_t extent_bytes) : bytes(extent_bytes) {}

  Slab& slab(uint32_t index) REQUIRES(mu) { return slabs.find(index)->second; }
  void EnterPartial(uint32_t index) REQUIRES(mu) {
    slab(index).partial_at = partial.size();
    partial.push_back(index);
  }
  void LeavePartial(uint32_t index) REQUIRES(mu) {
    const uint32_t at = slab(index).partial_at;
    slab(partial.back()).partial_at = at;
    partial[at] = partial.back();
    partial.pop_back();
    slab(index).partial_at = kNone;
  }

  const uint64_t bytes;
  Mutex mu;
  absl::flat_hash_map<uint32_t, Slab> slabs GUARDED_BY(mu);  // those that serve this class
  std::vector<uint32_t> partial
      GUARDED_BY(mu);  // with a free extent, but for the one being drained
  uint64_t free_extents GUARDED_BY(mu) = 0;
  uint32_t draining GUARDED_BY(mu) = kNone;
};

class SlabAllocator final : public BlockAllocator {
 public:
  SlabAllocator(uint64_t arena_bytes, uint64_t slab_bytes)
      : slab_bytes_(slab_bytes), capacity_(arena_bytes / slab_bytes * slab_bytes) {
    MutexLock lock(idle_mu_);
    for (uint32_t i = capacity_ / slab_bytes; i > 0; --i) idle_.push_back(i - 1);
  }

  uint64_t max_bytes() const override { return slab_bytes_; }

  absl::StatusOr<uint32_t> ClassOf(uint64_t size) override {
    if (size == 0 || size > slab_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrCat("block of ", size, " bytes: expected 1..", slab_bytes_));
    }
    const uint64_t rounded = RoundUp(size);
    const uint64_t geometric = std::min(GeometricBytes(rounded), slab_bytes_);
    if (const uint32_t found = FindClass(rounded); found != kNone) return found;
    MutexLock lock(classes_mu_);
    if (const uint32_t found = FindClass(rounded); found != kNone) return found;
    if (exact_ < kMaxExact) {
      if (requests_.size() >= kMaxCounted)
        requests_.clear();  // start over: only frequent sizes matter
      if (++requests_[rounded] >= kExactAfter) {
        requests_.erase(rounded);
        ++exact_;
        return AddClass(rounded);
      }
    }
    const uint32_t found = FindClass(geometric);
    return found != kNone ? found : AddClass(geometric);
  }

  uint64_t ClassBytes(uint32_t size_class) const override { return classes_[size_class]->bytes; }

  size_t Allocate(uint32_t size_class, absl::Span<const StoredKey> owners, Extent* out) override {
    SizeClass& c = *classes_[size_class];
    MutexLock lock(c.mu);
    size_t n = 0;
    for (; n < owners.size() && (!c.partial.empty() || TakeIdleSlab(&c)); ++n)
      out[n] = Take(&c, size_class, owners[n]);
    return n;
  }

  std::optional<Extent> AllocateLarger(uint32_t size_class, const StoredKey& owner) override {
    const uint64_t wanted = ClassBytes(size_class);
    std::vector<std::pair<uint64_t, uint32_t>> larger;  // smallest first
    for (uint32_t k = 0, n = num_classes(); k < n; ++k) {
      const uint64_t bytes = ClassBytes(k);
      if (bytes > wanted && bytes <= 2 * wanted) larger.emplace_back(bytes, k);
    }
    std::sort(larger.begin(), larger.end());
    for (const auto& [bytes, k] : larger) {
      SizeClass& c = *classes_[k];
      MutexLock lock(c.mu);
      if (!c.partial.empty()) return Take(&c, k, owner);
    }
    return std::nullopt;
  }

  void Free(const Extent& extent) override {
    SizeClass& c = *classes_[extent.size_class];
    const uint32_t index = extent.offset / slab_bytes_;
    MutexLock lock(c.mu);
    const auto it = c.slabs.find(index);
    if (it == c.slabs.end()) return;  // freed before, like the next
    Slab& slab = it->second;
    const uint32_t slot = extent.offset % slab_bytes_ / c.bytes;
    if (slab.slots[slot].generation != extent.generation) return;
    slab.slots[slot] = {};
    slab.free.push_back(slot);
    if (index != c.draining) slab.failed_drains = 0;
    ++c.free_extents;
    used_.fetch_sub(c.bytes, std::memory_order_relaxed);
    if (slab.used() == 0) {
      GiveBack(&c, index);
    } else if (slab.partial_at == kNone && index != c.draining) {
      c.EnterPartial(index);
    }
  }

  AllocatorUsage usage() const override {
    MutexLock lock(idle_mu_);
    return {capacity_, used_.load(std::memory_order_relaxed), idle_.size() * slab_bytes_};
  }

  std::vector<DrainItem> BeginDrain(uint32_t for_class) override {
    MutexLock drain_lock(drain_mu_);
    std::vector<DrainItem> items;
    if (draining_class_ != kNone) return items;
    // Slabs that could not be emptied (a pinned block) come last until something in them is freed.
    std::pair<int, uint64_t> least;
    uint32_t best = kNone, best_class = kNone;
    for (uint32_t k = 0, n = num_classes(); k < n; ++k) {
      SizeClass& c = *classes_[k];
      MutexLock lock(c.mu);
      if (k == for_class || c.free_extents < slab_bytes_ / c.bytes) continue;
      for (uint32_t index : c.partial) {
        const Slab& s = c.slab(index);
        const std::pair<int, uint64_t> cost = {s.failed_drains, s.used() * c.bytes};
        if (best != kNone && cost >= least) continue;
        least = cost;
        best = index;
        best_class = k;
      }
    }
    if (best == kNone) return items;
    SizeClass& c = *classes_[best_class];
    MutexLock lock(c.mu);
    const auto it = c.slabs.find(best);
    if (it == c.slabs.end() || it->second.partial_at == kNone)
      return items;  // another thread emptied or filled it meanwhile
    const Slab& slab = it->second;
    for (uint32_t slot = 0; slot < slab.slots.size(); ++slot) {
      if (slab.slots[slot].generation == 0) continue;
      items.push_back(
          {slab.slots[slot].owner,
           {best * slab_bytes_ + slot * c.bytes, slab.slots[slot].generation, best_class}});
    }
    c.LeavePartial(best);
    c.draining = best;
    draining_class_ = best_class;
    return items;
  }

  void EndDrain() override {
    MutexLock drain_lock(drain_mu_);
    if (draining_class_ == kNone) return;
    SizeClass& c = *classes_[draining_class_];
    draining_class_ = kNone;
    MutexLock lock(c.mu);
    const uint32_t index = std::exchange(c.draining, kNone);
    if (index == kNone) return;  // it became idle
    Slab& slab = c.slab(index);
    ++slab.failed_drains;
    if (!slab.free.empty()) c.EnterPartial(index);
  }

 private:
  uint32_t num_classes() const { return num_classes_.load(std::memory_order_acquire); }
  uint32_t FindClass(uint64_t bytes) const {
    for (uint32_t k = 0, n = num_classes(); k < n; ++k) {
      if (classes_[k]->bytes == bytes) return k;
    }
    return kNone;
  }
  uint32_t AddClass(uint64_t bytes) REQUIRES(classes_mu_) {
    const uint32_t k = num_classes();
    classes_[k] = std::make_unique<SizeClass>(bytes);
    num_classes_.store(k + 1, std::memory_order_release);
    return k;
  }
  // The class has a partial slab.
  Extent Take(SizeClass* c, uint32_t size_class, const StoredKey& owner) REQUIRES(c->mu) {
    const uint32_t index = c->partial.back();
    Slab& slab = c->slab(index);
    const uint32_t slot = slab.free.back();
    slab.free.pop_back();
    const uint64_t generation = generation_.fetch_add(1, std::memory_order_relaxed) + 1;
    slab.slots[slot] = {generation, owner};
    --c->free_extents;
    used_.fetch_add(c->bytes, std::memory_order_relaxed);
    if (slab.free.empty()) c->LeavePartial(index);
    return Extent{index * slab_bytes_ + slot * c->bytes, generation, size_class};
  }
  bool TakeIdleSlab(SizeClass* c) REQUIRES(c->mu) {
    uint32_t index;
    {
      MutexLock lock(idle_mu_);
      if (idle_.empty()) return false;
      index = idle_.back();
      idle_.pop_back();
    }
    const uint32_t count = slab_bytes_ / c->bytes;
    Slab& slab = c->slabs[index];
    slab.slots.resize(count);
    for (uint32_t i = count; i > 0; --i) slab.free.push_back(i - 1);
    c->free_extents += count;
    c->EnterPartial(index);
    return true;
  }
  void GiveBack(SizeClass* c, uint32_t index) REQUIRES(c->mu) {
    if (c->slab(index).partial_at != kNone) c->LeavePartial(index);
    c->free_extents -= c->slab(index).slots.size();
    c->slabs.erase(index);
    if (c->draining == index) c->draining = kNone;
    MutexLock lock(idle_mu_);
    idle_.push_back(index);
  }

  const uint64_t slab_bytes_;
  const uint64_t capacity_;
  // Written under classes_mu_, each before num_classes_ says that it is there.
  std::array<std::unique_ptr<SizeClass>, kMaxClasses> classes_;
  std::atomic<uint32_t> num_classes_{0};
  std::atomic<uint64_t> generation_{0}, used_{0};
  Mutex classes_mu_;
  absl::flat_hash_map<uint64_t, int> requests_ GUARDED_BY(classes_mu_);
  size_t exact_ GUARDED_BY(classes_mu_) = 0;
  mutable Mutex idle_mu_;
  std::vector<uint32_t> idle_ GUARDED_BY(idle_mu_);
  Mutex drain_mu_;
  uint32_t draining_class_ GUARDED_BY(drain_mu_) = kNone;
};

}  // namespace

std::unique_ptr<BlockAllocator> MakeSlabAllocator(uint64_t arena_bytes, uint64_t slab_bytes) {
  if (slab_bytes == 0) {
    slab_bytes = std::clamp<uint64_t>(std::bit_floor(arena_bytes / 64), 1 << 20, 64 << 20);
    slab_bytes = std::min(slab_bytes, std::max<uint64_t>(std::bit_floor(arena_bytes), kAlign));
  }
  return std::make_unique<SlabAllocator>(arena_bytes, slab_bytes);
}

}  // namespace oscarkv
