// The stored blocks of a node by key: lookup, pins, chains, expiry and the choice of victims.
//
// Chains. A block names its parent. A block with a stored child is never a victim, so a chain goes
// from its tail and what remains is always a usable prefix; a hit counts for all ancestors that are
// stored here. The count of children is kept per parent *key*, also while the parent itself is
// absent (on another node, or erased as corrupt and put again).
//
// Victims come from pools: one eviction order per (tenant, size class) and shard. Memory of one
// size class is freed by evicting in that class, a tenant over its quota pays with its own blocks.
// Extra copies have pools of their own, in order of their last use.
//
// Tenants do not see each other's blocks: a key always comes with its tenant (StoredKey).
//
// Thread-safe. One lock per shard; never two at a time; the allocator's lock may be taken inside.
// No call blocks otherwise.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/mutex.h"
#include "kvstore/core/block.h"
#include "kvstore/metrics.h"

namespace oscarkv {

struct PoolId {
  uint32_t tenant = 0;
  uint32_t size_class = 0;
  bool extra = false;
  bool operator==(const PoolId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const PoolId& p) {
    return H::combine(std::move(h), p.tenant, p.size_class, p.extra);
  }
};

struct IndexStats {
  uint64_t kind_bytes[kNumBlockKinds] = {};
  uint64_t kind_blocks[kNumBlockKinds] = {};
  uint64_t evictions = 0, pinned_bytes = 0, extra_bytes = 0;
};

class BlockIndex {
 public:
  // Sees a block that EvictOne took out, before its memory is freed; no lock is held.
  using EvictionSink = std::function<void(const Block& block, absl::Span<const uint8_t> bytes)>;
  // `allocator` and `arena` outlive the index; `metrics` and `sink` may be null.
  BlockIndex(size_t shards, EvictionKind eviction, BlockAllocator* allocator,
             absl::Span<uint8_t> arena, KvNodeMetrics* metrics, EvictionSink sink);
  ~BlockIndex();
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  bool Contains(const StoredKey& key, Time now) const;
  // How many keys from the first on the tenant has stored; counts as a use of them and of their
  // ancestors.
  size_t Match(uint32_t tenant, absl::Span<const BlockKey> keys, Time now);
  // One number per batch of Pin calls: ancestors are counted once per batch.
  uint32_t NewEpoch() { return epoch_.fetch_add(1) + 1; }
  // Counts as a use. Null: not stored. The block keeps its address, its extent and its bytes until
  // Unpin.
  Block* Pin(const StoredKey& key, uint32_t epoch, Time now);
  void Unpin(Block* block);
  // True when stored; then a block with a TTL lives at least until now + ttl (for ever with ttl 0,
  // and is no extra copy any more).
  bool Refresh(const StoredKey& key, Duration ttl, Time now);

  // A child of `parent` (may be empty) is being put: the parent is no victim until Insert took the
  // child or Unexpect.
  void Expect(const StoredKey& parent);
  void Unexpect(const StoredKey& parent);
  // Takes a block whose parent was told to Expect it, when it returns OK. kAlreadyExists: the
  // caller keeps it. kInvalidArgument: its chain of parents leads back to it; it is taken and gone.
  // Ends the expectation in each case.
  absl::Status Insert(std::unique_ptr<Block>* block, Time now);
  // False: nothing is stored, or another generation than the one wanted. Memory of a pinned block
  // is freed at its last Unpin.
  bool Erase(const StoredKey& key, std::optional<uint64_t> generation);
  // Removes blocks whose TTL passed; returns how many.
  size_t ExpireDue(Time now);

  // Frees one block of the pool. False: none may go.
  bool EvictOne(const PoolId& pool, Time now);
  // The pool among those that `pred` accepts whose next candidate was used least recently, and
  // when; nothing when all are empty.
  struct ColdPool {
    PoolId pool;
    Time last_use;
  };
  template <typename Pred>
  std::optional<ColdPool> ColdestPool(Pred pred) const {
    std::optional<ColdPool> best;
    for (const PoolId& pool : Pools()) {
      if (!pred(pool)) continue;
      const Time last_use = Coldest(pool);
      if (last_use != Time::max() && (!best || last_use < best->last_use))
        best = ColdPool{pool, last_use};
    }
    return best;
  }
  // Copies an unpinned block elsewhere in its size class and frees `from`. False: it is not there,
  // pinned, or there is no room.
  bool Relocate(const StoredKey& key, const Extent& from);

  // Blocks without a TTL whose placement is known and that were inserted before `before`. One shard
  // after the other, each under its lock: some 0.1 us a block.
  struct Listed {
    StoredKey key;
    BlockKey placement;
    Tenant* tenant = nullptr;
    uint64_t size = 0;
    Time last_use{};
  };
  std::vector<Listed> List(Time before) const;
  // As Pin and Unpin, for the node's own looks at a block: no use, and not counted as pinned.
  Block* Hold(const StoredKey& key, Time now);
  void Unhold(Block* block);
  // The block was used then, too, at another node.
  enum class Copy { kNone, kExtra, kOwn };
  Copy UsedElsewhere(const StoredKey& key, Time last_use, Time now);

  // Counts the pins of blocks without a TTL in windows, from now on: EndReadWindow tells of those
  // that were pinned at least `report_at` times in the window that it ends (of the first kMostHot
  // that were, as far as they are still stored). Costs nothing until it is called.
  static constexpr size_t kMostHot = 4096;
  struct Hot {
    StoredKey key;
    BlockKey placement;
    Tenant* tenant = nullptr;
    uint64_t size = 0;
    uint32_t reads = 0;
  };
  void CountReads(uint32_t report_at) { report_at_ = report_at; }
  std::vector<Hot> EndReadWindow(Time now);
  // Readers of the block are told from now on.
  void SetExtraCopies(const StoredKey& key, uint32_t copies, Time now);

  IndexStats stats() const;

 private:
  struct Slot {
    std::unique_ptr<Block> block;  // null: only known as a parent
    uint32_t children = 0;         // stored blocks that name this key as their parent
    uint32_t expected = 0;         // such blocks being put
    bool is_parent() const { return children + expected > 0; }
  };
  struct Expiry {
    Time at;
    StoredKey key;
    bool operator>(const Expiry& other) const { return at > other.at; }
  };
  struct Shard {
    mutable Mutex mu;
    absl::flat_hash_map<StoredKey, Slot> slots GUARDED_BY(mu);
    absl::flat_hash_map<PoolId, std::unique_ptr<EvictionPolicy>> pools GUARDED_BY(mu);
    std::priority_queue<Expiry, std::vector<Expiry>, std::greater<Expiry>> expiries GUARDED_BY(mu);
  };

  Shard& ShardOf(const StoredKey& key) const {
    return *shards_[key.key.Prefix64() % shards_.size()];
  }
  static PoolId PoolOf(const Block& block) {
    return {block.tenant->id, block.extent.size_class, block.extra};
  }
  EvictionPolicy& PolicyOf(Shard& shard, const Block& block) REQUIRES(shard.mu);
  std::vector<PoolId> Pools() const;
  Time Coldest(const PoolId& pool) const;

  // The stored, not expired block of a key; null without one.
  static Block* Find(const Shard& shard, const StoredKey& key, Time now) REQUIRES(shard.mu);
  void Hit(Shard& shard, Block* block, uint32_t epoch, Time now) REQUIRES(shard.mu);
  void CountRead(const Shard& shard, Block* block) REQUIRES(shard.mu);
  void MakeOwn(Shard& shard, Block* block) REQUIRES(shard.mu);
  void HitAncestors(StoredKey parent, uint32_t epoch, Time now);
  // Takes the block out of slot and policy. Returns it when it is to be freed now, null when its
  // pins keep it. The caller calls CountChildren(parent, -1, 0) after unlocking in both cases.
  std::unique_ptr<Block> TakeOut(Shard& shard, const StoredKey& key) REQUIRES(shard.mu);
  void ReturnIfFree(Shard& shard, const Slot& slot) REQUIRES(shard.mu);
  // Adds to the counts of a key's slot, makes it if there is none, drops it when nothing is left in
  // it.
  void CountChildren(const StoredKey& parent, int children, int expected);
  void Release(Block* block, bool held);
  void FreeMemory(std::unique_ptr<Block> block);
  bool ChainReturnsTo(const StoredKey& key, StoredKey parent) const;
  void Count(const Block& block, int sign);

  BlockAllocator* const allocator_;
  const absl::Span<uint8_t> arena_;
  KvNodeMetrics* const metrics_;
  const EvictionSink sink_;
  const EvictionKind eviction_;
  std::vector<std::unique_ptr<Shard>> shards_;
  mutable Mutex pools_mu_;
  std::vector<PoolId> pools_ GUARDED_BY(pools_mu_);  // in order of appearance
  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> evict_cursor_{0};
  std::atomic<uint64_t> kind_bytes_[kNumBlockKinds] = {};
  std::atomic<uint64_t> kind_blocks_[kNumBlockKinds] = {};
  std::atomic<uint64_t> evictions_{0}, pinned_bytes_{0}, extra_bytes_{0};
  std::atomic<uint32_t> report_at_{0};  // 0: reads are not counted
  std::atomic<uint32_t> read_window_{1};
  Mutex hot_mu_;  // taken under a shard's
  std::vector<StoredKey> hot_ GUARDED_BY(hot_mu_);
};

}  // namespace oscarkv
