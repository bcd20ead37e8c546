// The node and the tier below its memory.
//
// A get of a block on disk completes when the block is in memory: GetStart pins what is in memory
// at once, so that promotions do not push it out, asks the tier for the rest, and pins each block
// as it arrives. The caller sees a call that takes a little longer; there is nothing to poll and
// nothing to change in clients. What has not come in time is a miss, which the caller knows how to
// handle (it computes), and is in memory for the next one. Only calls that need the disk wait for
// it.
//
// A promoted block is an ordinary block; the copy on disk stays, so it costs no second write when
// memory gives it up again.
#include <algorithm>
#include <cstring>

#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/core/kv_node.h"

namespace oscarkv {

struct KvNode::PendingGet {
  std::shared_ptr<Session> session;
  kv::GetStartRequest request;
  Time started{}, until{};

  Mutex mu;  // taken before the session's
  kv::GetStartResponse response GUARDED_BY(mu);
  size_t open GUARDED_BY(mu) = 1;  // items that wait, and StartGet itself
  GetDone done GUARDED_BY(mu);     // null once it ran
};

void KvNode::Demote(const Block& block, absl::Span<const uint8_t> bytes) {
  // Hand-over blocks live for minutes: they are not worth a write.
  if (block.expires != Time::max()) return;
  TierBlock offered;
  offered.key = {block.tenant->digest, block.key.key};
  offered.tenant = block.tenant->name;
  offered.parent = block.parent.key;
  offered.placement = block.placement;
  offered.kind = block.kind;
  offered.size = block.size;
  offered.slices = block.slices;
  tier_->Offer(offered, block.reused, bytes);
}

size_t KvNode::MatchChain(const Tenant& tenant, absl::Span<const BlockKey> keys, Time now) {
  size_t matched = 0;
  for (;;) {
    matched += index_.Match(tenant.id, keys.subspan(matched), now);
    if (tier_ == nullptr) return matched;
    const size_t in_memory = matched;
    while (matched < keys.size() && tier_->Touch({tenant.digest, keys[matched]})) ++matched;
    if (matched == in_memory) return matched;
  }
}

bool KvNode::EraseFromTier(const Tenant& tenant, const BlockKey& key) {
  const TierKey tier_key{tenant.digest, key};
  const bool stored = tier_->Contains(tier_key);
  {
    MutexLock lock(promotions_mu_);
    if (const auto it = promotions_.find({tenant.id, key}); it != promotions_.end())
      it->second.erased = true;
  }
  tier_->Erase(tier_key);
  return stored;
}

void KvNode::StartGet(const kv::GetStartRequest& request, Duration budget, GetDone done) {
  kv::GetStartResponse response;
  const absl::Status status = Handle(request, &response);
  std::vector<size_t> missing;
  for (size_t i = 0; status.ok() && tier_ != nullptr && i < request.keys.size(); ++i) {
    if (absl::IsNotFound(response.statuses[i])) missing.push_back(i);
  }
  const auto session = FindSession(request.session_id);
  if (missing.empty() || !session.ok()) return done(status, response);

  const auto get = std::make_shared<PendingGet>();
  get->session = *session;
  get->request = request;
  get->started = clock_->Now();
  get->until = get->started + std::min(options_.tier_wait, budget / 2);
  {
    MutexLock lock(get->mu);
    get->response = std::move(response);
    get->open += missing.size();
    get->done = std::move(done);
  }
  for (size_t i : missing) Promote((*session)->tenant, request.keys[i], {get, i});
  bool waits;
  {
    MutexLock lock(get->mu);
    waits = get->open > 1;
  }
  if (waits) {
    MutexLock lock(promotions_mu_);
    waiting_gets_.push_back(get);
  }
  EndItem({get, request.keys.size()}, absl::OkStatus());
}

void KvNode::Promote(Tenant* tenant, const BlockKey& key, Waiter waiter) {
  const StoredKey stored_key{tenant->id, key};
  const Time until = waiter.get->until;
  {
    MutexLock lock(promotions_mu_);
    Promotion& promotion = promotions_[stored_key];
    promotion.waiters.push_back(std::move(waiter));
    if (promotion.waiters.size() > 1) return;  // on its way
  }
  const bool started =
      tier_->Fetch({tenant->digest, key}, until,
                   [this, tenant, stored_key](const absl::StatusOr<TierBlock>& block,
                                              absl::Span<const uint8_t> bytes) {
                     OnFetched(tenant, stored_key, block, bytes);
                   });
  if (!started) EndPromotion(stored_key, absl::NotFoundError("not stored"));
}

void KvNode::OnFetched(Tenant* tenant, const StoredKey& key, const absl::StatusOr<TierBlock>& block,
                       absl::Span<const uint8_t> bytes) {
  absl::Status status = block.status();
  if (status.ok()) status = InsertPromoted(tenant, *block, bytes);
  CountPromotion(status);
  EndPromotion(key, status);
}

void KvNode::EndPromotion(const StoredKey& key, absl::Status status) {
  Promotion promotion;
  {
    MutexLock lock(promotions_mu_);
    const auto it = promotions_.find(key);
    promotion = std::move(it->second);
    promotions_.erase(it);
  }
  if (promotion.erased) {
    index_.Erase(key, std::nullopt);
    status = absl::NotFoundError("not stored");
  }
  for (const Waiter& waiter : promotion.waiters) EndItem(waiter, status);
}

absl::Status KvNode::InsertPromoted(Tenant* tenant, const TierBlock& found,
                                    absl::Span<const uint8_t> bytes) {
  const Time now = clock_->Now();
  const StoredKey key{tenant->id, found.key.key}, parent{tenant->id, found.parent};
  ASSIGN_OR_RETURN(const uint32_t size_class, allocator_->ClassOf(found.size));
  index_.Expect(parent);  // first: the room must not come from the parent
  const absl::StatusOr<Extent> extent =
      Reserve(tenant, size_class, allocator_->ClassBytes(size_class), key, now);
  if (!extent.ok()) {
    index_.Unexpect(parent);
    return extent.status();
  }
  std::memcpy(arena_.data() + extent->offset, bytes.data(), bytes.size());
  auto block = std::make_unique<Block>();
  block->key_hash = key.key.Prefix64();
  block->key = key;
  block->parent = parent;
  block->placement = found.placement;
  block->kind = found.kind;
  block->size = found.size;
  block->charged = allocator_->ClassBytes(extent->size_class);
  block->tenant = tenant;
  block->slices = found.slices;
  block->extent = *extent;
  block->reused = true;
  block->last_use = now;
  const uint64_t charged = block->charged;
  absl::Status inserted = index_.Insert(&block, now);
  if (!absl::IsAlreadyExists(inserted)) return inserted;
  FreeExtent(*extent, tenant, charged);  // somebody put it meanwhile
  return absl::OkStatus();
}

void KvNode::CountPromotion(const absl::Status& status) {
  if (tier_metrics_ == nullptr) return;
  const char* outcome = "disk_error";
  switch (status.code()) {
    case absl::StatusCode::kOk:
      outcome = "ok";
      break;
    case absl::StatusCode::kDeadlineExceeded:
      outcome = "late";
      break;
    case absl::StatusCode::kInvalidArgument:  // larger than a slab
    case absl::StatusCode::kResourceExhausted:
      outcome = "no_room";
      break;
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kCancelled:
      outcome = "gone";
      break;
    case absl::StatusCode::kDataLoss:
      outcome = "corrupt";
      break;
    default:
      break;
  }
  tier_metrics_->promotions.With({outcome}).Increment();
}

void KvNode::EndItem(const Waiter& waiter, const absl::Status& status) {
  PendingGet& get = *waiter.get;
  GetDone done;
  kv::GetStartResponse response;
  {
    MutexLock lock(get.mu);
    if (!get.done) return;  // too late
    if (waiter.item < get.request.keys.size() && status.ok()) {
      const Time now = clock_->Now();
      MutexLock session_lock(get.session->mu);
      if (!get.session->closed && get.session->pins.size() < options_.max_pins_per_session) {
        get.response.statuses[waiter.item] =
            PinOne(get.session.get(), get.request.keys[waiter.item], index_.NewEpoch(), now,
                   now + PinTtl(get.request.pin_ttl), &get.response.locations[waiter.item]);
      }
    }
    if (--get.open > 0) return;
    done = std::exchange(get.done, nullptr);
    response = std::move(get.response);
  }
  if (tier_metrics_ != nullptr)
    tier_metrics_->wait_seconds->Observe(Seconds(clock_->Now() - get.started));
  done(absl::OkStatus(), response);
}

void KvNode::EndLateGets(Time now) {
  std::vector<std::shared_ptr<PendingGet>> late;
  {
    MutexLock lock(promotions_mu_);
    std::erase_if(waiting_gets_, [&](const std::shared_ptr<PendingGet>& get) {
      MutexLock get_lock(get->mu);
      if (!get->done) return true;
      if (get->until > now) return false;
      late.push_back(get);
      return true;
    });
  }
  for (const auto& get : late) {
    GetDone done;
    kv::GetStartResponse response;
    {
      MutexLock lock(get->mu);
      if (!get->done) continue;
      done = std::exchange(get->done, nullptr);
      response = std::move(get->response);
    }
    if (tier_metrics_ != nullptr) tier_metrics_->wait_seconds->Observe(Seconds(now - get->started));
    done(absl::OkStatus(), response);
  }
}

void KvNode::SetTierGauges() {
  if (tier_ == nullptr) return;
  const TierStats s = tier_->stats();
  const std::string& node = options_.name;
  for (int k = 0; k < kNumBlockKinds; ++k) {
    const absl::string_view kind = BlockKindName(static_cast<BlockKind>(k + 1));
    metrics_->bytes.With({node, kind, "ssd"}).Set(s.kind_bytes[k]);
    metrics_->blocks.With({node, kind, "ssd"}).Set(s.kind_blocks[k]);
  }
  if (tier_metrics_ == nullptr) return;
  tier_metrics_->capacity.With({node}).Set(s.capacity_bytes);
  tier_metrics_->used.With({node}).Set(s.used_bytes);
  tier_metrics_->queued.With({node}).Set(s.queued_bytes);
  tier_metrics_->unflushed.With({node}).Set(s.unflushed_bytes);
  tier_metrics_->writable.With({node}).Set(s.writable ? 1 : 0);
  tier_metrics_->adopted.With({node}).Set(s.adopted_blocks);
}

}  // namespace oscarkv
