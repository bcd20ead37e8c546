#include <algorithm>
#include <array>
#include <bit>

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
constexpr uint32_t kNone = UINT32_MAX;

uint64_t RoundUp(uint64_t size) {
  return (size + kAlign - 1) / kAlign * kAlign;
}

// The smallest of 2^n and 1.5 * 2^n, n >= 8, that holds `size`.
uint64_t GeometricBytes(uint64_t size) {
  const uint64_t power = std::max<uint64_t>(256, std::bit_ceil(size));
  return power / 4 * 3 >= size && power > 256 ? power / 4 * 3 : power;
}

class SlabAllocator final : public BlockAllocator {
 public:
  SlabAllocator(uint64_t arena_bytes, uint64_t slab_bytes) : slab_bytes_(slab_bytes) {
    slabs_.resize(arena_bytes / slab_bytes);
    for (uint32_t i = slabs_.size(); i > 0; --i) idle_.push_back(i - 1);
    capacity_ = slabs_.size() * slab_bytes;
  }

  uint64_t max_bytes() const override { return slab_bytes_; }

  absl::StatusOr<uint32_t> ClassOf(uint64_t size) override {
    if (size == 0 || size > slab_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrCat("block of ", size, " bytes: expected 1..", slab_bytes_));
    }
    const uint64_t rounded = RoundUp(size);
    MutexLock lock(mu_);
    if (const auto it = class_of_.find(rounded); it != class_of_.end()) return it->second;
    if (exact_ < kMaxExact) {
      if (requests_.size() >= kMaxCounted)
        requests_.clear();  // start over: only frequent sizes matter
      if (++requests_[rounded] >= kExactAfter) {
        requests_.erase(rounded);
        ++exact_;
        return AddClass(rounded);
      }
    }
    const uint64_t bytes = std::min(GeometricBytes(rounded), slab_bytes_);
    const auto it = class_of_.find(bytes);
    return it != class_of_.end() ? it->second : AddClass(bytes);
  }

  uint64_t ClassBytes(uint32_t size_class) const override {
    MutexLock lock(mu_);
    return classes_[size_class].bytes;
  }

  std::optional<Extent> Allocate(uint32_t size_class, const BlockKey& owner) override {
    MutexLock lock(mu_);
    SizeClass& c = classes_[size_class];
    if (c.partial.empty()) {
      if (idle_.empty()) return std::nullopt;
      Assign(size_class, idle_.back());
      idle_.pop_back();
    }
    const uint32_t index = c.partial.back();
    Slab& slab = slabs_[index];
    const uint32_t slot = slab.free.back();
    slab.free.pop_back();
    slab.slots[slot] = {++generation_, owner};
    --c.free_extents;
    used_ += c.bytes;
    if (slab.free.empty()) LeavePartial(index);
    return Extent{index * slab_bytes_ + slot * c.bytes, generation_, size_class};
  }

  void Free(const Extent& extent) override {
    MutexLock lock(mu_);
    const uint32_t index = extent.offset / slab_bytes_;
    Slab& slab = slabs_[index];
    if (slab.size_class != extent.size_class) return;  // freed before, like the next
    SizeClass& c = classes_[slab.size_class];
    const uint32_t slot = extent.offset % slab_bytes_ / c.bytes;
    if (slab.slots[slot].generation != extent.generation) return;
    slab.slots[slot] = {};
    slab.free.push_back(slot);
    if (index != draining_) slab.failed_drains = 0;
    ++c.free_extents;
    used_ -= c.bytes;
    if (slab.free.size() == slab.slots.size()) {
      Unassign(index);
    } else if (slab.partial_at == kNone && index != draining_) {
      EnterPartial(index);
    }
  }

  AllocatorUsage usage() const override {
    MutexLock lock(mu_);
    return {capacity_, used_, idle_.size() * slab_bytes_};
  }

  std::vector<DrainItem> BeginDrain(uint32_t for_class) override {
    MutexLock lock(mu_);
    std::vector<DrainItem> items;
    if (draining_ != kNone) return items;
    uint32_t best = kNone;
    for (uint32_t k = 0; k < classes_.size(); ++k) {
      const SizeClass& c = classes_[k];
      if (k == for_class || c.free_extents < slab_bytes_ / c.bytes) continue;
      for (uint32_t index : c.partial) {
        if (best == kNone || DrainCost(index) < DrainCost(best)) best = index;
      }
    }
    if (best == kNone) return items;
    draining_ = best;
    const Slab& slab = slabs_[best];
    const uint64_t bytes = classes_[slab.size_class].bytes;
    for (uint32_t slot = 0; slot < slab.slots.size(); ++slot) {
      if (slab.slots[slot].generation == 0) continue;
      items.push_back(
          {slab.slots[slot].owner,
           {best * slab_bytes_ + slot * bytes, slab.slots[slot].generation, slab.size_class}});
    }
    LeavePartial(best);
    return items;
  }

  void EndDrain() override {
    MutexLock lock(mu_);
    if (draining_ == kNone) return;  // it became idle
    const uint32_t index = draining_;
    draining_ = kNone;
    ++slabs_[index].failed_drains;
    if (!slabs_[index].free.empty()) EnterPartial(index);
  }

 private:
  struct Slot {
    uint64_t generation = 0;  // 0: free
    BlockKey owner;
  };
  struct Slab {
    uint32_t size_class = kNone;
    uint32_t partial_at = kNone;  // position in its class's `partial`
    int failed_drains = 0;
    std::vector<uint32_t> free;
    std::vector<Slot> slots;
  };
  struct SizeClass {
    uint64_t bytes = 0;
    uint64_t free_extents = 0;
    std::vector<uint32_t> partial;  // slabs with a free extent, none of them being drained
  };

  uint32_t AddClass(uint64_t bytes) REQUIRES(mu_) {
    classes_.push_back({.bytes = bytes, .free_extents = 0, .partial = {}});
    return class_of_[bytes] = classes_.size() - 1;
  }
  // Slabs that could not be emptied (a pinned block) come last until something in them is freed.
  std::pair<int, uint64_t> DrainCost(uint32_t index) const REQUIRES(mu_) {
    const Slab& s = slabs_[index];
    return {s.failed_drains, (s.slots.size() - s.free.size()) * classes_[s.size_class].bytes};
  }
  void EnterPartial(uint32_t index) REQUIRES(mu_) {
    std::vector<uint32_t>& partial = classes_[slabs_[index].size_class].partial;
    slabs_[index].partial_at = partial.size();
    partial.push_back(index);
  }
  void LeavePartial(uint32_t index) REQUIRES(mu_) {
    std::vector<uint32_t>& partial = classes_[slabs_[index].size_class].partial;
    const uint32_t at = slabs_[index].partial_at;
    slabs_[partial.back()].partial_at = at;
    partial[at] = partial.back();
    partial.pop_back();
    slabs_[index].partial_at = kNone;
  }
  void Assign(uint32_t size_class, uint32_t index) REQUIRES(mu_) {
    Slab& slab = slabs_[index];
    const uint32_t count = slab_bytes_ / classes_[size_class].bytes;
    slab.size_class = size_class;
    slab.failed_drains = 0;
    slab.slots.assign(count, {});
    slab.free.clear();
    for (uint32_t i = count; i > 0; --i) slab.free.push_back(i - 1);
    classes_[size_class].free_extents += count;
    EnterPartial(index);
  }
  void Unassign(uint32_t index) REQUIRES(mu_) {
    Slab& slab = slabs_[index];
    if (slab.partial_at != kNone) LeavePartial(index);
    classes_[slab.size_class].free_extents -= slab.slots.size();
    slab.size_class = kNone;
    if (draining_ == index) draining_ = kNone;
    idle_.push_back(index);
  }

  const uint64_t slab_bytes_;
  uint64_t capacity_ = 0;
  mutable Mutex mu_;
  std::vector<Slab> slabs_ GUARDED_BY(mu_);
  std::vector<uint32_t> idle_ GUARDED_BY(mu_);
  std::vector<SizeClass> classes_ GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, uint32_t> class_of_ GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, int> requests_ GUARDED_BY(mu_);
  size_t exact_ GUARDED_BY(mu_) = 0;
  uint64_t generation_ GUARDED_BY(mu_) = 0;
  uint64_t used_ GUARDED_BY(mu_) = 0;
  uint32_t draining_ GUARDED_BY(mu_) = kNone;
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
