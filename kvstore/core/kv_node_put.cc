// Puts: reserve, check, make visible; room for them; quarantine of the abandoned.
//
// Room. A put needs an extent of its size class. When the class has none: first a slab of another
// class that is mostly empty is emptied by moving its blocks (no block is lost), then a block is
// evicted, of the class itself, or of the class whose next candidate has rested more than twice as
// long; there it takes several until a slab's worth is free and can change class. So the classes'
// shares follow the traffic, and old blocks of a size nobody asks for any more do not sit on their
// memory for ever.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/core/kv_node.h"
#include "kvstore/tier/record.h"

namespace oscarkv {
namespace {

constexpr int kMaxRoomSteps = 4096;     // evictions and moves that one reservation may cause
constexpr int kEvictionsPerChoice = 8;  // between two looks for the coldest pool

// Extra copies that rested so long go before anything else. Younger ones take their turn, else a
// node that is always full, as caches are, would drop at once what is read most.
constexpr Duration kExtraRest = std::chrono::seconds(10);

bool IsExtra(const kv::PutItem& item) {
  return item.restored && item.ttl > Duration(0);
}

bool ValidKind(BlockKind kind) {
  return static_cast<int>(kind) >= 1 && static_cast<int>(kind) <= kNumBlockKinds;
}

}  // namespace

absl::Status KvNode::Handle(const kv::PutStartRequest& request, kv::PutStartResponse* response) {
  const size_t n = request.items.size();
  if (n > kv::kMaxItemsPerCall) {
    return absl::InvalidArgumentError(
        absl::StrCat(n, " items in one call: at most ", kv::kMaxItemsPerCall));
  }
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  const Time now = clock_->Now();
  response->statuses.assign(n, absl::OkStatus());
  response->offsets.assign(n, 0);
  response->generations.assign(n, 0);
  MutexLock lock(session->mu);
  if (session->closed) return absl::UnauthenticatedError("the session was closed: open a new one");
  std::vector<size_t> run;  // items of one size class that want room
  uint32_t run_class = 0;
  uint64_t extra_bytes = 0;  // admitted by this call
  for (size_t i = 0; i < n; ++i) {
    const absl::StatusOr<uint32_t> size_class =
        Admit(session.get(), request.items[i], request.put_id, now, &extra_bytes);
    if (!size_class.ok()) {
      response->statuses[i] = size_class.status();
      continue;
    }
    if (*size_class != run_class) {
      StartRun(session.get(), request, run, run_class, now, response);
      run.clear();
    }
    run_class = *size_class;
    run.push_back(i);
  }
  StartRun(session.get(), request, run, run_class, now, response);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> KvNode::Admit(Session* session, const kv::PutItem& item, uint64_t put_id,
                                       Time now, uint64_t* extra_bytes) {
  if (item.key.empty() || !ValidKind(item.kind) || item.ttl < Duration(0) ||
      item.parent == item.key) {
    return absl::InvalidArgumentError(
        "put item: expected a key, another parent, a kind 1..3 and a ttl of 0 or more");
  }
  // A repeated call is for StartRun.
  if (!session->started.contains({item.key, put_id})) {
    if (index_.Refresh(session->Own(item.key), item.ttl, now))
      return absl::AlreadyExistsError("stored");
    if (item.restored) RETURN_IF_ERROR(AdmitCopy(session, item, now, *extra_bytes));
    if (IsExtra(item)) *extra_bytes += item.size;
  }
  return allocator_->ClassOf(item.size);
}

void KvNode::StartRun(Session* session, const kv::PutStartRequest& request,
                      absl::Span<const size_t> run, uint32_t size_class, Time now,
                      kv::PutStartResponse* response) {
  if (run.empty()) return;
  std::vector<size_t> fresh, repeated;
  std::vector<StoredKey> owners;
  fresh.reserve(run.size());
  owners.reserve(run.size());
  for (size_t i : run) {
    const kv::PutItem& item = request.items[i];
    // Also a block that is twice in this call: the first takes the room, the second learns of it.
    if (!session->started.try_emplace({item.key, request.put_id}, 0).second) {
      repeated.push_back(i);
      continue;
    }
    fresh.push_back(i);
    owners.push_back(session->Own(item.key));
    index_.Expect(session->Own(item.parent));  // first: the room must not come from the parent
  }
  std::vector<Extent> extents(fresh.size());
  size_t taken = 0;
  const uint64_t bytes = allocator_->ClassBytes(size_class);
  if (Charge(session->tenant, bytes * fresh.size())) {
    taken = allocator_->Allocate(size_class, owners, extents.data());
    session->tenant->used_bytes.fetch_sub(bytes * (fresh.size() - taken),
                                          std::memory_order_relaxed);
  }
  for (size_t k = 0; k < fresh.size(); ++k) {
    const kv::PutItem& item = request.items[fresh[k]];
    absl::StatusOr<Extent> extent = extents[k];
    if (k >= taken) extent = Reserve(session->tenant, size_class, bytes, owners[k], now);
    if (!extent.ok()) {
      index_.Unexpect(session->Own(item.parent));
      session->started.erase({item.key, request.put_id});
      response->statuses[fresh[k]] = extent.status();
      if (metrics_ != nullptr) metrics_->put_refused->Increment();
      continue;
    }
    const uint64_t charged = allocator_->ClassBytes(extent->size_class);
    reserved_bytes_.fetch_add(charged, std::memory_order_relaxed);
    if (IsExtra(item)) extra_reserved_.fetch_add(item.size, std::memory_order_relaxed);
    session->started[{item.key, request.put_id}] = extent->generation;
    session->reservations[extent->generation] = {item, request.put_id,         *extent, charged,
                                                 now,  now + options_.put_ttl, false};
    if (options_.grants) session->writable.Add(extent->offset, item.size);
    response->offsets[fresh[k]] = extent->offset;
    response->generations[fresh[k]] = extent->generation;
  }
  for (size_t i : repeated) {
    response->statuses[i] = Started(session, request.items[i], request.put_id,
                                    &response->offsets[i], &response->generations[i]);
  }
}

absl::Status KvNode::Started(Session* session, const kv::PutItem& item, uint64_t put_id,
                             uint64_t* offset, uint64_t* generation) {
  const auto it = session->started.find({item.key, put_id});
  if (it == session->started.end())
    return absl::ResourceExhaustedError("no room, as for the same block earlier in the call");
  const Reservation& r = session->reservations.at(it->second);
  if (r.item.size != item.size || r.item.kind != item.kind || r.item.parent != item.parent) {
    return absl::FailedPreconditionError(
        absl::StrCat("this put reserved the block with ", r.item.size, " bytes and now asks for ",
                     item.size, ", or differs in kind or parent: revoke first"));
  }
  *offset = r.extent.offset;
  *generation = r.extent.generation;
  return absl::OkStatus();
}

bool KvNode::Charge(Tenant* tenant, uint64_t bytes) {
  const uint64_t used = tenant->used_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (options_.tenant_quota_bytes == 0 || used <= options_.tenant_quota_bytes) return true;
  tenant->used_bytes.fetch_sub(bytes, std::memory_order_relaxed);
  return false;
}

absl::StatusOr<Extent> KvNode::Reserve(Tenant* tenant, uint32_t size_class, uint64_t bytes,
                                       const StoredKey& owner, Time now) {
  const uint64_t quota = options_.tenant_quota_bytes;
  tenant->used_bytes.fetch_add(bytes, std::memory_order_relaxed);
  absl::Status refused;
  for (int step = 0; step < kMaxRoomSteps; ++step) {
    if (quota > 0 && tenant->used_bytes.load(std::memory_order_relaxed) > quota) {
      if (EvictOf(tenant, now)) continue;
      refused = absl::ResourceExhaustedError(
          absl::StrCat("tenant '", tenant->name, "': its quota of ", quota,
                       " bytes is full of blocks that may not be evicted"));
      break;
    }
    if (const std::optional<Extent> extent = AllocateOne(allocator_.get(), size_class, owner);
        extent.has_value())
      return *extent;
    if (MakeRoom(size_class, now)) continue;
    const std::optional<Extent> larger = allocator_->AllocateLarger(size_class, owner);
    if (!larger.has_value()) break;
    if (Charge(tenant, allocator_->ClassBytes(larger->size_class) - bytes)) return *larger;
    allocator_->Free(*larger);
    break;
  }
  tenant->used_bytes.fetch_sub(bytes, std::memory_order_relaxed);
  if (!refused.ok()) return refused;
  return absl::ResourceExhaustedError(absl::StrCat(
      "no room for ", bytes, " bytes: what is stored is pinned, being written or in quarantine"));
}

template <typename Pred>
std::optional<BlockIndex::ColdPool> KvNode::NextPool(Time now, Pred pred) const {
  const auto extra = index_.ColdestPool([&](const PoolId& p) { return p.extra && pred(p); });
  if (extra && now - extra->last_use > kExtraRest) return extra;
  return index_.ColdestPool(pred);
}

bool KvNode::MakeRoom(uint32_t size_class, Time now) {
  if (DrainSlabFor(size_class)) return true;
  const auto own = NextPool(now, [&](const PoolId& p) { return p.size_class == size_class; });
  if (own && own->pool.extra && index_.EvictOne(own->pool, now)) return true;
  const auto other = NextPool(now, [&](const PoolId& p) { return p.size_class != size_class; });
  const bool take_other = other && (!own || now - other->last_use > 2 * (now - own->last_use));
  if (take_other && index_.EvictOne(other->pool, now)) return true;
  if (own && index_.EvictOne(own->pool, now)) return true;
  return other && !take_other && index_.EvictOne(other->pool, now);
}

bool KvNode::DrainSlabFor(uint32_t size_class) {
  const std::vector<BlockAllocator::DrainItem> items = allocator_->BeginDrain(size_class);
  bool moved = !items.empty();
  for (const auto& item : items) {
    if (!index_.Relocate(item.owner, item.extent)) {
      moved = false;
      break;
    }
  }
  if (!items.empty()) allocator_->EndDrain();
  return moved;
}

bool KvNode::EvictOf(Tenant* tenant, Time now) {
  const auto pool = NextPool(now, [&](const PoolId& p) { return p.tenant == tenant->id; });
  return pool && index_.EvictOne(pool->pool, now);
}

void KvNode::EvictToWatermark(Time now) {
  AllocatorUsage usage = allocator_->usage();
  if (usage.used <= options_.high_watermark * usage.capacity) return;
  while (usage.used > options_.low_watermark * usage.capacity) {
    const auto pool = NextPool(now, [](const PoolId&) { return true; });
    if (!pool || !index_.EvictOne(pool->pool, now)) return;
    for (int i = 1; i < kEvictionsPerChoice; ++i) {
      usage = allocator_->usage();
      if (usage.used <= options_.low_watermark * usage.capacity ||
          !index_.EvictOne(pool->pool, now))
        break;
    }
    usage = allocator_->usage();
  }
}

absl::Status KvNode::Handle(const kv::PutEndRequest& request, kv::PutEndResponse* response) {
  const size_t n = request.items.size();
  if (n > kv::kMaxItemsPerCall) {
    return absl::InvalidArgumentError(
        absl::StrCat(n, " items in one call: at most ", kv::kMaxItemsPerCall));
  }
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  response->statuses.clear();
  response->statuses.reserve(n);
  const Time now = clock_->Now();
  for (const kv::PutEndItem& item : request.items)
    response->statuses.push_back(EndOne(session.get(), item, now));
  return absl::OkStatus();
}

absl::Status KvNode::EndOne(Session* session, const kv::PutEndItem& item, Time now) {
  Reservation reservation;
  {
    MutexLock lock(session->mu);
    const auto it = session->reservations.find(item.generation);
    if (it == session->reservations.end() || it->second.item.key != item.key) {
      // A repeated PutEnd, or another writer was first: equal keys mean equal bytes.
      if (index_.Contains(session->Own(item.key), now)) return absl::OkStatus();
      return absl::NotFoundError(
          "no such reservation: it expired, was revoked, or the session ended");
    }
    if (it->second.committing)
      return absl::UnavailableError("another PutEnd of this block is under way: try again");
    it->second.committing = true;
    // What is checked now must not change any more.
    if (options_.grants) session->writable.Remove(it->second.extent.offset);
    reservation = it->second;
  }
  bool consumed = false;
  absl::Status status = CheckAndInsert(session, reservation, item.slices, now, &consumed);
  MutexLock lock(session->mu);
  const auto it = session->reservations.find(item.generation);
  if (consumed) {
    Forget(session, reservation);
    session->reservations.erase(it);
    if (metrics_ != nullptr && status.ok()) metrics_->put_committed->Increment();
  } else if (session->closed) {
    Abandon(session, reservation, /*drained=*/false);
    session->reservations.erase(it);
  } else {
    it->second.committing = false;  // the writer may correct it, or revoke
    if (options_.grants) session->writable.Add(reservation.extent.offset, reservation.item.size);
  }
  return status;
}

absl::Status KvNode::CheckAndInsert(Session* session, const Reservation& r,
                                    const kv::SliceTable& slices, Time now, bool* consumed) {
  RETURN_IF_ERROR(CheckSliceTable(slices, r.item.size));
  if (options_.verify_on_put) {
    absl::Status verified = VerifySlices(slices, arena_.subspan(r.extent.offset, r.item.size));
    if (!verified.ok()) {
      if (metrics_ != nullptr) metrics_->corrupt.With({"put"}).Increment();
      LogError("put refused: checksum differs",
               {{"node", options_.name}, {"key", r.item.key.Hex()}, {"client", session->name}});
      return verified;
    }
  }
  auto block = std::make_unique<Block>();
  block->key_hash = r.item.key.Prefix64();
  block->key = session->Own(r.item.key);
  block->parent = session->Own(r.item.parent);
  block->placement = r.item.placement;
  block->kind = r.item.kind;
  block->size = r.item.size;
  block->charged = r.charged;
  block->extra = IsExtra(r.item);
  block->tenant = session->tenant;
  block->slices = std::make_shared<const kv::SliceTable>(slices);
  block->extent = r.extent;
  block->expires = r.item.ttl == Duration(0) ? Time::max() : now + r.item.ttl;
  block->last_use = r.item.restored ? now - r.item.idle : now;
  if (!r.item.restored) ForgetErasure(session->Own(r.item.key));
  absl::Status inserted = index_.Insert(&block, now);
  *consumed = block == nullptr;  // also when the index took it and threw it out again
  if (!absl::IsAlreadyExists(inserted)) return inserted;
  // The writer finished, so nothing is under way into this copy.
  FreeExtent(r.extent, session->tenant, r.charged);
  *consumed = true;
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::PutRevokeRequest& request, kv::PutRevokeResponse* response) {
  const size_t n = request.generations.size();
  if (n > kv::kMaxItemsPerCall) {
    return absl::InvalidArgumentError(
        absl::StrCat(n, " reservations in one call: at most ", kv::kMaxItemsPerCall));
  }
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  response->statuses.assign(n, absl::OkStatus());
  MutexLock lock(session->mu);
  for (size_t i = 0; i < n; ++i) {
    const auto it = session->reservations.find(request.generations[i]);
    if (it == session->reservations.end()) continue;  // revoked, expired or committed before
    if (it->second.committing) {
      response->statuses[i] =
          absl::UnavailableError("a PutEnd of this block is under way: try again");
      continue;
    }
    Abandon(session.get(), it->second, request.drained);
    session->reservations.erase(it);
    if (metrics_ != nullptr) metrics_->put_revoked->Increment();
  }
  return absl::OkStatus();
}

absl::Status KvNode::WriteReserved(uint64_t session_id, const kv::WriteChunk& chunk,
                                   absl::Span<const uint8_t> data) {
  ASSIGN_OR_RETURN(const auto session, FindSession(session_id));
  MutexLock lock(session->mu);
  const auto it = session->reservations.find(chunk.generation);
  if (it == session->reservations.end() || it->second.item.key != chunk.key ||
      it->second.committing) {
    return absl::NotFoundError(
        "no such reservation: it expired, was revoked or is being committed");
  }
  const uint64_t size = it->second.item.size;
  if (chunk.offset > size || data.size() > size - chunk.offset ||
      data.size() > kv::kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("write of ", data.size(), " bytes at ",
                                                   chunk.offset, " of a block of ", size,
                                                   ", at most ", kv::kMaxChunkBytes, " at once"));
  }
  std::memcpy(arena_.data() + it->second.extent.offset + chunk.offset, data.data(), data.size());
  return absl::OkStatus();
}

// --- Quarantine ---

void KvNode::FreeExtent(const Extent& extent, Tenant* tenant, uint64_t charged) {
  allocator_->Free(extent);
  tenant->used_bytes.fetch_sub(charged, std::memory_order_relaxed);
}

void KvNode::Forget(Session* session, const Reservation& r) {
  reserved_bytes_.fetch_sub(r.charged, std::memory_order_relaxed);
  if (IsExtra(r.item)) extra_reserved_.fetch_sub(r.item.size, std::memory_order_relaxed);
  session->started.erase({r.item.key, r.put_id});
}

void KvNode::Abandon(Session* session, const Reservation& r, bool drained) {
  Forget(session, r);
  if (options_.grants && !r.committing) session->writable.Remove(r.extent.offset);
  index_.Unexpect(session->Own(r.item.parent));
  if (drained) return FreeExtent(r.extent, session->tenant, r.charged);
  MutexLock lock(quarantine_mu_);
  quarantined_bytes_ += r.charged;
  quarantine_.push_back(
      {r.extent, session->tenant, r.charged, session->id, r.started + 2 * options_.put_ttl});
}

void KvNode::FreeQuarantine(Time now, std::optional<uint64_t> closed_session) {
  std::vector<Quarantined> due;
  {
    MutexLock lock(quarantine_mu_);
    const auto keep = std::stable_partition(
        quarantine_.begin(), quarantine_.end(),
        [&](const Quarantined& q) { return q.until > now && q.session_id != closed_session; });
    due.assign(keep, quarantine_.end());
    quarantine_.erase(keep, quarantine_.end());
    for (const Quarantined& q : due) quarantined_bytes_ -= q.charged;
  }
  for (const Quarantined& q : due) FreeExtent(q.extent, q.tenant, q.charged);
}

}  // namespace oscarkv
