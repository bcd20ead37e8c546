// What a node knows of the copies of its blocks at other nodes, and what it takes from them.
//
// A copy that another node restores here must not cost more than it brings. It goes into free
// memory, up to the low watermark; beyond that only in the place of blocks that rested more than
// twice as long. So copies never push each other round in a circle: each displacement halves the
// idle time of what is stored, and a full cluster comes to rest.
//
// Extra copies (put with a TTL by a node whose readers are many) have to fit into their share of
// the memory besides.
//
// Erasures by clients are remembered for a while, so that a node that was away when they came does
// not bring the block back. Blocks are named by their content: one that comes back after that is
// still the right one.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/core/digest.h"
#include "kvstore/core/kv_node.h"
#include "kvstore/tier/record.h"

namespace oscarkv {
namespace {

constexpr Duration kRememberErasures = std::chrono::minutes(10);
constexpr size_t kMostErasures = 1 << 16;
// A block must have rested so much longer than twice the idle time of the copy that replaces it.
constexpr Duration kIdleMargin = std::chrono::seconds(10);

}  // namespace

absl::Status KvNode::Handle(const kv::CompareDigestsRequest& request,
                            kv::CompareDigestsResponse* response) {
  if (request.digests.size() != kv::kDigestBuckets) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.digests.size(), " digests: expected ", kv::kDigestBuckets));
  }
  MutexLock lock(replicas_mu_);
  const auto own = digests_.find(request.from);
  for (uint32_t b = 0; b < kv::kDigestBuckets; ++b) {
    if (own == digests_.end() || own->second[b] != request.digests[b])
      response->differing.push_back(b);
  }
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::CompareBlocksRequest& request,
                            kv::CompareBlocksResponse* response) {
  if (request.keys.size() > kv::kMaxItemsPerCall ||
      request.idle_seconds.size() != request.keys.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.keys.size(), " keys and ", request.idle_seconds.size(),
                     " idle times: expected as many, at most ", kv::kMaxItemsPerCall));
  }
  std::optional<uint32_t> tenant;  // none: it has no blocks in memory here
  {
    MutexLock lock(tenants_mu_);
    for (const auto& [name, t] : tenants_) {
      if (t->digest == request.tenant_digest) tenant = t->id;
    }
  }
  const Time now = clock_->Now();
  response->states.reserve(request.keys.size());
  for (size_t i = 0; i < request.keys.size(); ++i) {
    const BlockKey& key = request.keys[i];
    const Duration idle = std::chrono::seconds(request.idle_seconds[i]);
    kv::CopyState state = kv::CopyState::kNoRoom;
    const BlockIndex::Copy own =
        tenant ? index_.UsedElsewhere({*tenant, key}, now - idle, now) : BlockIndex::Copy::kNone;
    if (own == BlockIndex::Copy::kOwn ||
        (tier_ != nullptr && tier_->Contains({request.tenant_digest, key}))) {
      state = kv::CopyState::kStored;
    } else if (own == BlockIndex::Copy::kExtra) {
      state = kv::CopyState::kWanted;  // it stays when it is put without a TTL
    } else if (tenant && ErasedLately({*tenant, key}, now)) {
      state = kv::CopyState::kErased;
    } else if (RoomForCopy(0, idle, now)) {
      state = kv::CopyState::kWanted;
    }
    response->states.push_back(state);
  }
  return absl::OkStatus();
}

void KvNode::PublishDigests(DigestTable digests) {
  MutexLock lock(replicas_mu_);
  digests_.swap(digests);
}

void KvNode::PublishReplicaStats(const ReplicaStats& stats, Time compared) {
  MutexLock lock(replicas_mu_);
  replica_stats_ = stats;
  compared_ = compared;
}

std::vector<BlockIndex::Listed> KvNode::ListBlocks(Duration settle) const {
  // The bound itself belongs to the list: with a clock that stands still, all that is stored.
  return index_.List(clock_->Now() - settle + Duration(1));
}

std::unique_ptr<KvNode::Held> KvNode::Hold(const StoredKey& key) {
  Block* block = index_.Hold(key, clock_->Now());
  return block == nullptr ? nullptr : std::make_unique<Held>(&index_, block);
}

absl::Status KvNode::CheckBlock(const StoredKey& key, absl::string_view found) {
  absl::Status verified;
  uint64_t generation;
  {
    const std::unique_ptr<Held> held = Hold(key);
    if (held == nullptr) return absl::NotFoundError("not stored");
    verified = VerifySlices(*(*held)->slices, BytesOf(*held));
    generation = (*held)->extent.generation;
  }
  if (verified.ok()) return verified;
  if (index_.Erase(key, generation)) {
    if (metrics_ != nullptr) metrics_->corrupt.With({found}).Increment();
    LogError("corrupt block found and erased", {{"node", options_.name},
                                                {"key", key.key.Hex()},
                                                {"found", std::string(found)},
                                                {"error", std::string(verified.message())}});
  }
  return verified;
}

// --- What is taken ---

bool KvNode::RoomForCopy(uint64_t size, Duration idle, Time now) const {
  const AllocatorUsage usage = allocator_->usage();
  if (static_cast<double>(usage.used + size) <=
      options_.low_watermark * static_cast<double>(usage.capacity))
    return true;
  const auto coldest = index_.ColdestPool([](const PoolId&) { return true; });
  return coldest && now - coldest->last_use > 2 * idle + kIdleMargin;
}

absl::Status KvNode::AdmitCopy(Session* session, const kv::PutItem& item, Time now,
                               uint64_t extra_bytes) {
  if (ErasedLately(session->Own(item.key), now))
    return absl::FailedPreconditionError("a client erased this block not long ago");
  const uint64_t quota = options_.tenant_quota_bytes;
  const Tenant& tenant = *session->tenant;
  if (quota > 0 && tenant.used_bytes.load(std::memory_order_relaxed) + item.size > quota) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tenant '", tenant.name, "': a restored copy would go beyond its quota of ",
                     quota, " bytes"));
  }
  const double extra_limit = options_.extra_share * static_cast<double>(arena_.size());
  const uint64_t extra =
      index_.stats().extra_bytes + extra_reserved_.load() + extra_bytes + item.size;
  if (item.ttl > Duration(0) && static_cast<double>(extra) > extra_limit) {
    return absl::ResourceExhaustedError(absl::StrCat("extra copies may take ",
                                                     static_cast<uint64_t>(extra_limit),
                                                     " bytes, with this one it would be ", extra));
  }
  if (RoomForCopy(item.size, item.idle, now)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("a restored copy of ", item.size,
                   " bytes: only blocks that were used more recently could make room"));
}

// --- Erasures ---

void KvNode::RememberErasure(const StoredKey& key) {
  const Time until = clock_->Now() + kRememberErasures;
  MutexLock lock(replicas_mu_);
  erasures_[key] = until;
  any_erasures_.store(true, std::memory_order_relaxed);
  erasure_order_.emplace_back(until, key);
  while (erasure_order_.size() > kMostErasures || erasure_order_.front().first <= clock_->Now()) {
    // An entry that was renewed since stays: its later one counts.
    const auto it = erasures_.find(erasure_order_.front().second);
    if (it != erasures_.end() && it->second == erasure_order_.front().first) erasures_.erase(it);
    erasure_order_.pop_front();
  }
}

void KvNode::ForgetErasure(const StoredKey& key) {
  if (!any_erasures_.load(std::memory_order_relaxed)) return;
  MutexLock lock(replicas_mu_);
  erasures_.erase(key);
}

bool KvNode::ErasedLately(const StoredKey& key, Time now) {
  MutexLock lock(replicas_mu_);
  const auto it = erasures_.find(key);
  return it != erasures_.end() && it->second > now;
}

}  // namespace oscarkv
