// Room in the arena. Extents are offsets: the allocator never touches the memory itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvstore/core/stored_key.h"

namespace oscarkv {

// A piece of the arena. `generation` is new with every allocation and never comes back, so (offset,
// generation) names one life of that memory: a reader that learnt another generation has read freed
// memory.
struct Extent {
  uint64_t offset = 0;
  uint64_t generation = 0;
  uint32_t size_class = 0;
  bool operator==(const Extent&) const = default;
};

struct AllocatorUsage {
  uint64_t capacity = 0;  // bytes that can be handed out
  uint64_t used = 0;      // bytes handed out, rounding included
  uint64_t idle = 0;      // bytes of slabs that no size class holds
};

// Thread-safe; never blocks but for short internal locks, none of them process-wide on the way of a
// block: one per size class, taken once per batch, and one for slabs that change their class.
class BlockAllocator {
 public:
  virtual ~BlockAllocator() = default;
  virtual uint64_t max_bytes() const = 0;
  // The class that serves blocks of `size` bytes now. kInvalidArgument: 0 or above max_bytes().
  virtual absl::StatusOr<uint32_t> ClassOf(uint64_t size) = 0;
  virtual uint64_t ClassBytes(uint32_t size_class) const = 0;
  // One extent per owner, in their order, to `out`; returns for how many there was room. The owners
  // are kept for BeginDrain. The rest found none: the class is full and no slab is idle.
  virtual size_t Allocate(uint32_t size_class, absl::Span<const StoredKey> owners, Extent* out) = 0;
  // For one block, where the class has no room: from a class of up to twice the size. Better than
  // to store nothing.
  virtual std::optional<Extent> AllocateLarger(uint32_t size_class, const StoredKey& owner) = 0;
  virtual void Free(const Extent& extent) = 0;
  virtual AllocatorUsage usage() const = 0;

  // Rebalancing: a class whose free extents sum up to a slab can give one to another class after
  // the few blocks in it moved. BeginDrain picks the slab with the fewest extents in use among the
  // classes other than `for_class` that have that much free, and hands out no more of it until
  // EndDrain. Empty: there is none. The slab becomes idle by itself when its last extent is freed.
  struct DrainItem {
    StoredKey owner;
    Extent extent;
  };
  virtual std::vector<DrainItem> BeginDrain(uint32_t for_class) = 0;
  virtual void EndDrain() = 0;
};

// One block's room.
inline std::optional<Extent> AllocateOne(BlockAllocator* allocator, uint32_t size_class,
                                         const StoredKey& owner) {
  Extent extent;
  if (allocator->Allocate(size_class, absl::MakeConstSpan(&owner, 1), &extent) == 0) return {};
  return extent;
}

// The arena in slabs of equal size, each cut into extents of one size class; a slab that becomes
// empty can serve any class.
//
// Classes: 1 and 1.5 times powers of two (at most a third is lost), and exact ones (rounded up to
// 128 bytes) for sizes asked for often: nearly all traffic is a few fixed block sizes, while the
// partial hand-over blocks come in many sizes and are few. slab_bytes: a power of two; 0 chooses
// 1/64 of the arena, between 1 MiB (or the whole arena, if that is smaller) and 64 MiB.
std::unique_ptr<BlockAllocator> MakeSlabAllocator(uint64_t arena_bytes, uint64_t slab_bytes);

}  // namespace oscarkv
