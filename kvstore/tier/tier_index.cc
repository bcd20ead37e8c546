#include "kvstore/tier/tier_index.h"

namespace oscarkv {

void TierIndex::Count(const TierKey& key, const Entry& entry, int sign) {
  const int kind = static_cast<int>(entry.kind) - 1;
  kind_bytes_[kind].fetch_add(sign * static_cast<int64_t>(entry.size), std::memory_order_relaxed);
  kind_blocks_[kind].fetch_add(sign, std::memory_order_relaxed);
  MutexLock lock(tenants_mu_);
  const auto it = tenant_bytes_.try_emplace(key.tenant).first;
  it->second += sign * static_cast<int64_t>(entry.size);
  if (it->second == 0) tenant_bytes_.erase(it);
}

uint64_t TierIndex::tenant_bytes(const TenantDigest& tenant) const {
  MutexLock lock(tenants_mu_);
  const auto it = tenant_bytes_.find(tenant);
  return it == tenant_bytes_.end() ? 0 : it->second;
}

std::optional<TierIndex::Entry> TierIndex::Find(const TierKey& key) const {
  const Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto it = shard.entries.find(key);
  if (it == shard.entries.end()) return std::nullopt;
  return it->second;
}

std::optional<TierIndex::Entry> TierIndex::Use(const TierKey& key) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto it = shard.entries.find(key);
  if (it == shard.entries.end()) return std::nullopt;
  it->second.used = true;
  return it->second;
}

void TierIndex::Insert(const TierKey& key, const Entry& entry) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto [it, fresh] = shard.entries.try_emplace(key);
  if (!fresh) Count(key, it->second, -1);
  it->second = entry;
  Count(key, entry, 1);
}

bool TierIndex::Move(const TierKey& key, uint64_t from, const Entry& to) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto it = shard.entries.find(key);
  if (it == shard.entries.end() || it->second.generation != from) return false;
  it->second = to;  // of the same block: nothing to count
  return true;
}

std::optional<TierIndex::Entry> TierIndex::Erase(const TierKey& key,
                                                 std::optional<uint64_t> generation) {
  Shard& shard = ShardOf(key);
  MutexLock lock(shard.mu);
  const auto it = shard.entries.find(key);
  if (it == shard.entries.end()) return std::nullopt;
  if (generation.has_value() && it->second.generation != *generation) return std::nullopt;
  const Entry entry = it->second;
  shard.entries.erase(it);
  Count(key, entry, -1);
  return entry;
}

std::vector<TierKey> TierIndex::KeysOf(uint64_t generation, bool only_used) const {
  std::vector<TierKey> keys;
  for (const Shard& shard : shards_) {
    MutexLock lock(shard.mu);
    for (const auto& [key, entry] : shard.entries) {
      if (entry.generation == generation && (entry.used || !only_used)) keys.push_back(key);
    }
  }
  return keys;
}

size_t TierIndex::EraseGeneration(uint64_t generation) {
  size_t erased = 0;
  for (Shard& shard : shards_) {
    MutexLock lock(shard.mu);
    absl::erase_if(shard.entries, [&](const auto& item) {
      if (item.second.generation != generation) return false;
      Count(item.first, item.second, -1);
      ++erased;
      return true;
    });
  }
  return erased;
}

}  // namespace oscarkv
