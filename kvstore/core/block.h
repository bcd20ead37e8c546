// What the node knows of a stored block, and of a tenant.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "kvstore/api.h"
#include "kvstore/core/allocator.h"
#include "kvstore/core/eviction.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

struct Tenant {
  std::string name;
  uint32_t id = 0;
  TenantDigest digest{};
  std::atomic<uint64_t> used_bytes{
      0};  // memory of its blocks, reservations and quarantine, rounding included
};

// Fields after the first group change under the lock of the block's shard (BlockIndex).
struct Block : EvictionEntry {
  StoredKey key;
  StoredKey parent;    // of the same tenant
  BlockKey placement;  // empty: not known; its copies are not looked after
  BlockKind kind = BlockKind::kPage;
  uint64_t size = 0;
  uint64_t charged = 0;  // bytes of its extent
  Tenant* tenant = nullptr;
  std::shared_ptr<const kv::SliceTable> slices;

  Extent extent;        // moves only while there is no pin
  uint32_t pins = 0;    // holds included
  uint32_t holds = 0;   // of the node itself, which no reader waits for
  bool erased = false;  // out of the index, kept by its pins
  bool reused = false;  // a prefix match found it
  bool extra = false;   // a copy that demand brought, with a TTL, at a node that need not have it
  Time stored{};        // when it was inserted
  uint32_t touch_epoch = 0;
  Time expires = Time::max();
  Time expiry_queued{};  // the entry in its shard's expiry queue that counts
  // Pins in the index's window of that number, and in the one before.
  uint32_t reads = 0, reads_before = 0, read_window = 0;

  // Extra copies that this node made of it at the next nodes of its placement order.
  std::atomic<uint32_t> extra_copies{0};
};

}  // namespace oscarkv
