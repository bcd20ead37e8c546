// Value types of the store. A block is opaque bytes and a table of checksummed slices; what they
// mean is the codec's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "kvstore/block_key.h"

namespace oscarkv {

enum class BlockKind : uint8_t {
  kPage = 1,      // 2-bit pages of all layers
  kBf16 = 2,      // unquantised, content-addressed: the sink block; every block of the bf16 profile
  kHandover = 3,  // unquantised copy of a window or partial block, with a TTL
};
inline constexpr int kNumBlockKinds = 3;
absl::string_view BlockKindName(BlockKind kind);

// A contiguous part of a block with its own checksum (the header, one layer).
struct Slice {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t crc32c = 0;
  bool operator==(const Slice&) const = default;
};

// What a writer says of a block.
struct BlockSpec {
  BlockKey key;
  BlockKey parent;  // empty: first of its chain, or a block outside chains (hand-over)
  // Placement key: blocks of equal placement live on the same node (the chain hash of the first
  // block of each run of 16).
  BlockKey placement;
  BlockKind kind = BlockKind::kPage;
  uint64_t size = 0;
  Duration ttl{0};  // 0: lives until evicted
  // A node puts a copy that another one lacks: taken only while there is room, or in the place of
  // blocks that rested much longer than `idle`. With a TTL: an extra copy of a block that is read
  // much.
  bool restored = false;
  Duration idle{0};
};

// Of a node's tier on disk; capacity 0: it has none. Counts are since the start.
struct TierStats {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;                   // of the capacity
  uint64_t queued_bytes = 0;                 // accepted, not yet written
  uint64_t unflushed_bytes = 0;              // written, lost if the process dies now
  uint64_t kind_bytes[kNumBlockKinds] = {};  // of the blocks themselves, by BlockKind - 1
  uint64_t kind_blocks[kNumBlockKinds] = {};
  uint64_t adopted_blocks = 0;  // found at the start
  uint64_t demoted_blocks = 0, promoted_blocks = 0, dropped_blocks = 0, evicted_blocks = 0,
           corrupt_blocks = 0;
  bool writable = true;  // false while it rests after a failed write
};

// How the other copies of a node's blocks are; documented in the proto (ReplicaStats).
struct ReplicaStats {
  bool known = false;  // false: the node does not know the other nodes
  uint64_t waiting_blocks = 0, no_node_blocks = 0, no_room_blocks = 0, restored_blocks = 0,
           silent_peers = 0, compared_ms_ago = 0;
};

// A piece of a block in local registered memory.
struct LocalPiece {
  uint64_t offset = 0;  // in the block
  uint64_t length = 0;
  uint8_t* data = nullptr;
};

}  // namespace oscarkv
