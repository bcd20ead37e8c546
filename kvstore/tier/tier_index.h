// Which blocks the tier has on disk, and in which generation. All in memory, some 120 bytes a
// block.
//
// Thread-safe; one lock per shard.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/mutex.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

class TierIndex {
 public:
  struct Entry {
    uint64_t generation = 0;
    uint64_t size = 0;  // of the block
    BlockKind kind = BlockKind::kPage;
    bool used = false;  // since it was written to this generation
  };

  std::optional<Entry> Find(const TierKey& key) const;
  // As Find, and marks it used.
  std::optional<Entry> Use(const TierKey& key);
  // Replaces what is there.
  void Insert(const TierKey& key, const Entry& entry);
  // Nothing changes unless it lies in `from`; says whether it did.
  bool Move(const TierKey& key, uint64_t from, const Entry& to);
  // Nothing is erased unless it lies in `generation` (any generation when empty).
  std::optional<Entry> Erase(const TierKey& key, std::optional<uint64_t> generation);
  std::vector<TierKey> KeysOf(uint64_t generation, bool only_used) const;
  // Returns how many.
  size_t EraseGeneration(uint64_t generation);

  uint64_t tenant_bytes(const TenantDigest& tenant) const;
  uint64_t kind_bytes(int kind) const { return kind_bytes_[kind].load(std::memory_order_relaxed); }
  uint64_t kind_blocks(int kind) const {
    return kind_blocks_[kind].load(std::memory_order_relaxed);
  }

 private:
  static constexpr size_t kShards = 16;
  struct Shard {
    mutable Mutex mu;
    absl::flat_hash_map<TierKey, Entry> entries GUARDED_BY(mu);
  };
  Shard& ShardOf(const TierKey& key) { return shards_[key.key.Prefix64() % kShards]; }
  const Shard& ShardOf(const TierKey& key) const { return shards_[key.key.Prefix64() % kShards]; }
  void Count(const TierKey& key, const Entry& entry, int sign);

  Shard shards_[kShards];
  mutable Mutex tenants_mu_;  // taken inside a shard's
  absl::flat_hash_map<TenantDigest, uint64_t> tenant_bytes_ GUARDED_BY(tenants_mu_);
  std::atomic<uint64_t> kind_bytes_[kNumBlockKinds] = {};
  std::atomic<uint64_t> kind_blocks_[kNumBlockKinds] = {};
};

}  // namespace oscarkv
