// How many slots a worker's pools get.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/layout.h"

namespace oscarkv::worker {

// Slots of the two pools.
struct PoolSlots {
  uint64_t pages = 0;
  uint64_t blocks = 0;
};
// Slots when nothing else was asked for.
struct PoolDefaults {
  uint64_t pages = 0;
  uint64_t blocks = 0;
  bool more_blocks_help = true;  // false: so many are enough however much memory there is
};

// What the options ask for, in bytes; 0: whatever suits. fraction: of the memory that is free, for
// pools without a size of their own; 0: `defaults`.
struct PoolRequest {
  uint64_t page_bytes = 0;
  uint64_t block_bytes = 0;
  double fraction = 0;
};

// coded: sequences have pages. free_bytes: what all the pools' memory comes out of. Pools without a
// size of their own share the fraction of it that is left, in the proportion of `defaults`.
// kInvalidArgument: a pool would hold nothing.
absl::StatusOr<PoolSlots> SizePools(const PoolRequest& request, const kernels::KvShape& shape,
                                    bool coded, const PoolDefaults& defaults, uint64_t free_bytes);

}  // namespace oscarkv::worker
