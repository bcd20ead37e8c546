// A client's session at a node: owns its pins and its reservations, which die with it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/mutex.h"
#include "kvstore/core/access_map.h"
#include "kvstore/core/block.h"

namespace oscarkv {

// Memory promised to a writer. Not in the index: several puts may write the same block, the first
// PutEnd wins.
struct Reservation {
  kv::PutItem item;
  uint64_t put_id = 0;
  Extent extent;
  uint64_t charged = 0;
  Time started{};
  Time expires{};
  bool committing = false;  // a PutEnd checks and inserts it without the session's lock
};

struct Pin {
  Block* block = nullptr;
  uint64_t generation = 0;
  Time expires{};
};

struct Session {
  Session(uint64_t session_id, std::string client_name, Tenant* owner)
      : id(session_id), name(std::move(client_name)), tenant(owner) {}
  const uint64_t id;
  const std::string name;
  Tenant* const tenant;
  // What a key means in this session.
  StoredKey Own(const BlockKey& key) const { return {tenant->id, key}; }

  // Taken before any lock of index or allocator, never while holding one.
  Mutex mu;
  bool closed GUARDED_BY(mu) = false;
  Time expires GUARDED_BY(mu){};
  uint64_t next_pin GUARDED_BY(mu) = 1;
  absl::flat_hash_map<uint64_t, Reservation> reservations GUARDED_BY(mu);  // by generation
  absl::flat_hash_map<std::pair<BlockKey, uint64_t>, uint64_t> started
      GUARDED_BY(mu);  // (key, put id) -> generation
  absl::flat_hash_map<uint64_t, Pin> pins GUARDED_BY(mu);
  // With KvNodeOptions::grants: the memory of the pins, and of the reservations that no PutEnd is
  // checking.
  AccessMap readable GUARDED_BY(mu), writable GUARDED_BY(mu);
};

}  // namespace oscarkv
