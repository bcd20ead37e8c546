#include "kvstore/core/block_index.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace oscarkv {

BlockIndex::BlockIndex(size_t shards, EvictionKind eviction, BlockAllocator* allocator,
                       absl::Span<uint8_t> arena, KvNodeMetrics* metrics, EvictionSink sink)
    : allocator_(allocator),
      arena_(arena),
      metrics_(metrics),
      sink_(std::move(sink)),
      eviction_(eviction) {
  for (size_t i = 0; i < std::max<size_t>(shards, 1); ++i)
    shards_.push_back(std::make_unique<Shard>());
}

BlockIndex::~BlockIndex() = default;

EvictionPolicy& BlockIndex::PolicyOf(Shard& shard, const Block& block) {
  const PoolId id = PoolOf(block);
  std::unique_ptr<EvictionPolicy>& policy = shard.pools[id];
  if (policy == nullptr) {
    policy = MakeEvictionPolicy(block.extra ? EvictionKind::kLru : eviction_);
    MutexLock lock(pools_mu_);
    if (std::find(pools_.begin(), pools_.end(), id) == pools_.end()) pools_.push_back(id);
  }
  return *policy;
}

std::vector<PoolId> BlockIndex::Pools() const {
  MutexLock lock(pools_mu_);
  return pools_;
}

Time BlockIndex::Coldest(const PoolId& pool) const {
  Time coldest = Time::max();
  for (const auto& shard : shards_) {
    MutexLock lock(shard->mu);
    const auto it = shard->pools.find(pool);
    if (it != shard->pools.end()) coldest = std::min(coldest, it->second->Coldest());
  }
  return coldest;
}

Block* BlockIndex::Find(const Shard& shard, const StoredKey& key, Time now) {
  const auto it = shard.slots.find(key);
  if (it == shard.slots.end() || it->second.block == nullptr || it->second.block->expires <= now)
    return nullptr;
  return it->second.block.get();
}

void BlockIndex::Hit(Shard& shard, Block* block, uint32_t epoch, Time now) {
  block->last_use = now;
  block->touch_epoch = epoch;
  PolicyOf(shard, *block).OnHit(block);
}

void BlockIndex::HitAncestors(StoredKey parent, uint32_t epoch, Time now) {
  while (!parent.empty()) {
    Shard& shard = ShardOf(parent);
    MutexLock lock(shard.mu);
    Block* block = Find(shard, parent, now);
    if (block == nullptr || block->touch_epoch == epoch) return;
    Hit(shard, block, epoch, now);
    parent = block->parent;
  }
}

bool BlockIndex::Contains(const StoredKey& key, Time now) const {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  return Find(shard, key, now) != nullptr;
}

size_t BlockIndex::Match(uint32_t tenant, absl::Span<const BlockKey> keys, Time now) {
  const uint32_t epoch = NewEpoch();
  size_t matched = 0;
  for (; matched < keys.size(); ++matched) {
    const StoredKey key{tenant, keys[matched]};
    StoredKey parent;
    {
      Shard& shard = ShardOf(key);
      MutexLock lock(shard.mu);
      Block* block = Find(shard, key, now);
      if (block == nullptr) break;
      Hit(shard, block, epoch, now);
      block->reused = true;
      parent = block->parent;
    }
    // In a chain the parent is the key before, which has its hit.
    if (matched == 0 || parent.key != keys[matched - 1]) HitAncestors(parent, epoch, now);
  }
  return matched;
}

Block* BlockIndex::Pin(const StoredKey& key, uint32_t epoch, Time now) {
  Block* block = nullptr;
  StoredKey parent;
  {
    Shard& shard = ShardOf(key);
    MutexLock lock(shard.mu);
    block = Find(shard, key, now);
    if (block == nullptr) return nullptr;
    if (block->pins++ == block->holds)
      pinned_bytes_.fetch_add(block->size, std::memory_order_relaxed);
    Hit(shard, block, epoch, now);
    CountRead(shard, block);
    parent = block->parent;
  }
  HitAncestors(parent, epoch, now);
  return block;
}

void BlockIndex::CountRead(const Shard& /*shard*/, Block* block) {
  const uint32_t report_at = report_at_.load(std::memory_order_relaxed);
  if (report_at == 0) return;
  if (block->extra && metrics_ != nullptr) metrics_->extra_reads->Increment();
  if (block->expires != Time::max()) return;
  const uint32_t window = read_window_.load(std::memory_order_relaxed);
  if (block->read_window != window) {
    block->reads_before = block->read_window + 1 == window ? block->reads : 0;
    block->reads = 0;
    block->read_window = window;
  }
  if (++block->reads != report_at) return;
  MutexLock lock(hot_mu_);
  if (hot_.size() < kMostHot) hot_.push_back(block->key);
}

std::vector<BlockIndex::Hot> BlockIndex::EndReadWindow(Time now) {
  std::vector<StoredKey> keys;
  {
    MutexLock lock(hot_mu_);
    keys.swap(hot_);
  }
  const uint32_t ended = read_window_.fetch_add(1);
  std::vector<Hot> hot;
  hot.reserve(keys.size());
  for (const StoredKey& key : keys) {
    Shard& shard = ShardOf(key);
    MutexLock lock(shard.mu);
    const Block* block = Find(shard, key, now);
    // One that was put again meanwhile has not been read so often.
    if (block == nullptr || block->expires != Time::max() || block->placement.empty()) continue;
    const uint32_t reads = block->read_window == ended       ? block->reads
                           : block->read_window == ended + 1 ? block->reads_before
                                                             : 0;
    hot.push_back({key, block->placement, block->tenant, block->size, reads});
  }
  return hot;
}

void BlockIndex::SetExtraCopies(const StoredKey& key, uint32_t copies, Time now) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  if (Block* block = Find(shard, key, now); block != nullptr)
    block->extra_copies.store(copies, std::memory_order_relaxed);
}

Block* BlockIndex::Hold(const StoredKey& key, Time now) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  Block* block = Find(shard, key, now);
  if (block == nullptr) return nullptr;
  ++block->pins;
  ++block->holds;
  return block;
}

BlockIndex::Copy BlockIndex::UsedElsewhere(const StoredKey& key, Time last_use, Time now) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  Block* block = Find(shard, key, now);
  if (block == nullptr) return Copy::kNone;
  block->last_use = std::max(block->last_use, last_use);
  return block->extra ? Copy::kExtra : Copy::kOwn;
}

std::vector<BlockIndex::Listed> BlockIndex::List(Time before) const {
  std::vector<Listed> all;
  for (const auto& shard : shards_) {
    size_t slots;
    {
      MutexLock lock(shard->mu);
      slots = shard->slots.size();
    }
    all.reserve(all.size() + slots);  // not under the lock
    MutexLock lock(shard->mu);
    for (const auto& [key, slot] : shard->slots) {
      const Block* block = slot.block.get();
      if (block == nullptr || block->expires != Time::max() || block->placement.empty() ||
          block->stored >= before)
        continue;
      all.push_back({key, block->placement, block->tenant, block->size, block->last_use});
    }
  }
  return all;
}

void BlockIndex::Unpin(Block* block) {
  Release(block, /*held=*/false);
}

void BlockIndex::Unhold(Block* block) {
  Release(block, /*held=*/true);
}

void BlockIndex::Release(Block* block, bool held) {
  std::unique_ptr<Block> dead;
  {
    Shard& shard = ShardOf(block->key);
    MutexLock lock(shard.mu);
    --block->pins;
    if (held) {
      --block->holds;
    } else if (block->pins == block->holds) {
      pinned_bytes_.fetch_sub(block->size, std::memory_order_relaxed);
    }
    if (block->pins > 0) return;
    if (block->erased) {
      dead.reset(block);
    } else {
      ReturnIfFree(shard, shard.slots[block->key]);
    }
  }
  if (dead != nullptr) FreeMemory(std::move(dead));
}

void BlockIndex::ReturnIfFree(Shard& shard, const Slot& slot) {
  Block* const block = slot.block.get();
  if (!block->aside || block->pins > 0 || slot.is_parent()) return;
  block->aside = false;
  PolicyOf(shard, *block).Return(block);
}

bool BlockIndex::Refresh(const StoredKey& key, Duration ttl, Time now) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  Block* block = Find(shard, key, now);
  if (block == nullptr) return false;
  // The queued expiry stays; when it comes up, ExpireDue sees that the block lives longer.
  if (block->expires != Time::max()) {
    block->expires = ttl == Duration(0) ? Time::max() : std::max(block->expires, now + ttl);
  }
  if (block->extra && ttl == Duration(0)) MakeOwn(shard, block);
  return true;
}

// One that is aside returns into its new pool.
void BlockIndex::MakeOwn(Shard& shard, Block* block) {
  if (!block->aside) PolicyOf(shard, *block).OnErase(block);
  block->extra = false;
  block->queue = block->frequency = 0;
  extra_bytes_.fetch_sub(block->size, std::memory_order_relaxed);
  if (!block->aside) PolicyOf(shard, *block).OnInsert(block);
}

void BlockIndex::CountChildren(const StoredKey& parent, int children, int expected) {
  if (parent.empty()) return;
  Shard& shard = ShardOf(parent);
  MutexLock lock(shard.mu);
  const auto it = shard.slots.try_emplace(parent).first;
  Slot& slot = it->second;
  slot.children += children;
  slot.expected += expected;
  if (slot.is_parent()) return;
  if (slot.block == nullptr) {
    shard.slots.erase(it);
  } else {
    ReturnIfFree(shard, slot);
  }
}

void BlockIndex::Expect(const StoredKey& parent) {
  CountChildren(parent, 0, 1);
}
void BlockIndex::Unexpect(const StoredKey& parent) {
  CountChildren(parent, 0, -1);
}

bool BlockIndex::ChainReturnsTo(const StoredKey& key, StoredKey parent) const {
  while (!parent.empty()) {
    if (parent == key) return true;
    Shard& shard = ShardOf(parent);
    MutexLock lock(shard.mu);
    const auto it = shard.slots.find(parent);
    if (it == shard.slots.end() || it->second.block == nullptr) return false;
    parent = it->second.block->parent;
  }
  return false;
}

absl::Status BlockIndex::Insert(std::unique_ptr<Block>* owned, Time now) {
  Block* const block = owned->get();
  const StoredKey key = block->key, parent = block->parent;
  const uint64_t generation = block->extent.generation;
  // Before the child is stored, so that the parent is never without protection.
  CountChildren(parent, 1, -1);
  bool stored = false, has_children = false, replaced = false;
  StoredKey replaced_parent;
  std::unique_ptr<Block> dead;
  {
    Shard& shard = ShardOf(key);
    MutexLock lock(shard.mu);
    if (Find(shard, key, now) == nullptr) {
      if (const auto it = shard.slots.find(key);
          it != shard.slots.end() && it->second.block != nullptr) {
        replaced = true;  // expired, not yet swept
        replaced_parent = it->second.block->parent;
        dead = TakeOut(shard, key);
      }
      Slot& slot = shard.slots[key];
      block->stored = now;
      if (block->expires != Time::max()) {
        block->expiry_queued = block->expires;
        shard.expiries.push({block->expires, key});
      }
      PolicyOf(shard, *block).OnInsert(block);
      has_children = slot.children > 0;
      slot.block = std::move(*owned);
      Count(*block, 1);
      stored = true;
    }
  }
  if (replaced) CountChildren(replaced_parent, -1, 0);
  if (dead != nullptr) FreeMemory(std::move(dead));
  if (!stored) {
    CountChildren(parent, -1, 0);
    return absl::AlreadyExistsError("stored by another writer");
  }
  // A ring of parents would never become evictable. It closes only with a block that already has
  // children.
  if (has_children && ChainReturnsTo(key, parent)) {
    Erase(key, generation);
    return absl::InvalidArgumentError("its chain of parents leads back to the block itself");
  }
  return absl::OkStatus();
}

std::unique_ptr<Block> BlockIndex::TakeOut(Shard& shard, const StoredKey& key) {
  const auto it = shard.slots.find(key);
  std::unique_ptr<Block> block = std::move(it->second.block);
  if (!it->second.is_parent()) shard.slots.erase(it);
  if (!block->aside) PolicyOf(shard, *block).OnErase(block.get());
  Count(*block, -1);
  if (block->pins == 0) return block;
  block->erased = true;
  (void)block.release();  // its pins own it now; the last Unpin frees it
  return nullptr;
}

bool BlockIndex::Erase(const StoredKey& key, std::optional<uint64_t> generation) {
  StoredKey parent;
  std::unique_ptr<Block> dead;
  {
    Shard& shard = ShardOf(key);
    MutexLock lock(shard.mu);
    const auto it = shard.slots.find(key);
    if (it == shard.slots.end() || it->second.block == nullptr) return false;
    if (generation.has_value() && it->second.block->extent.generation != *generation) return false;
    parent = it->second.block->parent;
    dead = TakeOut(shard, key);
  }
  CountChildren(parent, -1, 0);
  if (dead != nullptr) FreeMemory(std::move(dead));
  return true;
}

size_t BlockIndex::ExpireDue(Time now) {
  size_t expired = 0;
  for (const auto& shard : shards_) {
    for (;;) {
      StoredKey parent;
      std::unique_ptr<Block> dead;
      {
        MutexLock lock(shard->mu);
        if (shard->expiries.empty() || shard->expiries.top().at > now) break;
        const Expiry due = shard->expiries.top();
        shard->expiries.pop();
        const auto it = shard->slots.find(due.key);
        if (it == shard->slots.end() || it->second.block == nullptr) continue;
        Block* block = it->second.block.get();
        if (block->expiry_queued != due.at) continue;  // of an earlier block of this key
        if (block->expires > now) {
          block->expiry_queued = block->expires;
          if (block->expires != Time::max()) shard->expiries.push({block->expires, due.key});
          continue;
        }
        parent = block->parent;
        dead = TakeOut(*shard, due.key);
      }
      CountChildren(parent, -1, 0);
      if (dead != nullptr) FreeMemory(std::move(dead));
      ++expired;
    }
  }
  return expired;
}

bool BlockIndex::EvictOne(const PoolId& pool, Time now) {
  const uint32_t first = evict_cursor_.fetch_add(1, std::memory_order_relaxed);
  for (size_t i = 0; i < shards_.size(); ++i) {
    Shard& shard = *shards_[(first + i) % shards_.size()];
    std::unique_ptr<Block> victim;
    {
      MutexLock lock(shard.mu);
      const auto policy = shard.pools.find(pool);
      if (policy == shard.pools.end()) continue;
      while (EvictionEntry* entry = policy->second->NextVictim()) {
        Block* block = static_cast<Block*>(entry);
        block->aside = true;
        if (block->pins > 0 || shard.slots[block->key].is_parent()) continue;
        victim = TakeOut(shard, block->key);
        break;
      }
    }
    if (victim == nullptr) continue;
    evictions_.fetch_add(1, std::memory_order_relaxed);
    if (metrics_ != nullptr) metrics_->OnEviction(victim->kind, now - victim->last_use);
    if (sink_) sink_(*victim, {arena_.data() + victim->extent.offset, victim->size});
    CountChildren(victim->parent, -1, 0);
    FreeMemory(std::move(victim));
    return true;
  }
  return false;
}

bool BlockIndex::Relocate(const StoredKey& key, const Extent& from) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto it = shard.slots.find(key);
  if (it == shard.slots.end() || it->second.block == nullptr) return false;
  Block* block = it->second.block.get();
  if (block->extent != from || block->pins > 0) return false;
  const std::optional<Extent> to = AllocateOne(allocator_, from.size_class, key);
  if (!to.has_value()) return false;
  std::memcpy(arena_.data() + to->offset, arena_.data() + from.offset, block->size);
  block->extent = *to;
  allocator_->Free(from);
  return true;
}

void BlockIndex::FreeMemory(std::unique_ptr<Block> block) {
  allocator_->Free(block->extent);
  block->tenant->used_bytes.fetch_sub(block->charged, std::memory_order_relaxed);
}

void BlockIndex::Count(const Block& block, int sign) {
  const int kind = static_cast<int>(block.kind) - 1;
  kind_bytes_[kind].fetch_add(sign * static_cast<int64_t>(block.size), std::memory_order_relaxed);
  kind_blocks_[kind].fetch_add(sign, std::memory_order_relaxed);
  if (block.extra)
    extra_bytes_.fetch_add(sign * static_cast<int64_t>(block.size), std::memory_order_relaxed);
}

IndexStats BlockIndex::stats() const {
  IndexStats s;
  for (int k = 0; k < kNumBlockKinds; ++k) {
    s.kind_bytes[k] = kind_bytes_[k].load(std::memory_order_relaxed);
    s.kind_blocks[k] = kind_blocks_[k].load(std::memory_order_relaxed);
  }
  s.evictions = evictions_.load(std::memory_order_relaxed);
  s.pinned_bytes = pinned_bytes_.load(std::memory_order_relaxed);
  s.extra_bytes = extra_bytes_.load(std::memory_order_relaxed);
  return s;
}

}  // namespace oscarkv
