// Sessions, lookups, pins and time. The puts are in kv_node_put.cc.
#include "kvstore/core/kv_node.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/tier/record.h"

namespace oscarkv {
namespace {

// splitmix64: turns seed and counter into ids that are not guessed by accident.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

absl::Status CheckCount(size_t count, absl::string_view what) {
  if (count <= kv::kMaxItemsPerCall) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(count, " ", what, " in one call: at most ", kv::kMaxItemsPerCall));
}

absl::Status SessionGone(uint64_t id) {
  return absl::UnauthenticatedError(
      absl::StrCat("session ", absl::Hex(id), " is unknown or expired: open a new one"));
}

absl::Status PinGone() {
  return absl::AbortedError("the pin expired or was released");
}

}  // namespace

KvNode::KvNode(const KvNodeOptions& options, absl::Span<uint8_t> arena, const Clock* clock,
               KvNodeMetrics* metrics, Tier* tier, KvTierMetrics* tier_metrics)
    : options_(options),
      arena_(arena),
      clock_(clock),
      metrics_(metrics),
      allocator_(MakeSlabAllocator(arena.size(), options.slab_bytes)),
      tier_(tier),
      tier_metrics_(tier_metrics),
      index_(
          options.shards, options.eviction, allocator_.get(), arena, metrics,
          tier == nullptr ? BlockIndex::EvictionSink()
                          : [this](const Block& block,
                                   absl::Span<const uint8_t> bytes) { Demote(block, bytes); }),
      incarnation_(Mix(options.seed)) {}

KvNode::~KvNode() {
  for (const auto& session : AllSessions()) EndSession(session.get(), /*drained=*/true);
}

// --- Sessions ---

absl::Status KvNode::Handle(const kv::OpenSessionRequest& request,
                            kv::OpenSessionResponse* response) {
  if (request.client_name.size() > kv::kMaxNameLength ||
      request.tenant.size() > kv::kMaxNameLength) {
    return absl::InvalidArgumentError(
        absl::StrCat("client name or tenant longer than ", kv::kMaxNameLength, " bytes"));
  }
  ASSIGN_OR_RETURN(Tenant * tenant, FindTenant(request.tenant));
  {
    MutexLock lock(sessions_mu_);
    if (sessions_.size() >= options_.max_sessions) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the node has its maximum of ", options_.max_sessions, " sessions"));
    }
    const uint64_t id = Mix(incarnation_ ^ Mix(++session_counter_)) | 1;  // never 0
    auto session = std::make_shared<Session>(id, request.client_name, tenant);
    {
      MutexLock session_lock(session->mu);
      session->expires = clock_->Now() + options_.session_ttl;
    }
    sessions_[id] = std::move(session);
    response->session_id = id;
  }
  response->incarnation = incarnation_;
  response->session_ttl = options_.session_ttl;
  response->max_pin_ttl = options_.max_pin_ttl;
  response->put_ttl = options_.put_ttl;
  response->max_block_bytes = allocator_->max_bytes();
  response->transport_name = options_.transport_name;
  response->transport_address = options_.transport_address;
  response->exported_arena = options_.exported_arena;
  response->arena_bytes = arena_.size();
  return absl::OkStatus();
}

absl::StatusOr<Tenant*> KvNode::FindTenant(const std::string& name) {
  MutexLock lock(tenants_mu_);
  if (const auto it = tenants_.find(name); it != tenants_.end()) return it->second.get();
  if (tenants_.size() >= options_.max_tenants) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "tenant '", name, "': the node serves its maximum of ", options_.max_tenants, " tenants"));
  }
  auto tenant = std::make_unique<Tenant>();
  tenant->name = name;
  tenant->id = tenants_.size();
  tenant->digest = DigestOfTenant(name);
  return (tenants_[name] = std::move(tenant)).get();
}

absl::StatusOr<std::shared_ptr<Session>> KvNode::FindSession(uint64_t id) {
  MutexLock lock(sessions_mu_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return SessionGone(id);
  return it->second;
}

std::optional<std::string> KvNode::TenantOf(uint64_t session_id) const {
  MutexLock lock(sessions_mu_);
  const auto it = sessions_.find(session_id);
  if (it == sessions_.end()) return std::nullopt;
  return it->second->tenant->name;
}

std::vector<std::shared_ptr<Session>> KvNode::AllSessions() const {
  MutexLock lock(sessions_mu_);
  std::vector<std::shared_ptr<Session>> all;
  all.reserve(sessions_.size());
  for (const auto& [id, session] : sessions_) all.push_back(session);
  return all;
}

absl::Status KvNode::Handle(const kv::KeepAliveRequest& request, kv::KeepAliveResponse* response) {
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  MutexLock lock(session->mu);
  if (session->closed) return SessionGone(request.session_id);
  session->expires = clock_->Now() + options_.session_ttl;
  response->incarnation = incarnation_;
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::CloseSessionRequest& request,
                            kv::CloseSessionResponse* response) {
  // Unknown: closed before, or expired. What an expired session left in quarantine is free now.
  const auto session = FindSession(request.session_id);
  if (session.ok()) EndSession(session->get(), /*drained=*/true);
  FreeQuarantine(clock_->Now(), request.session_id);
  return absl::OkStatus();
}

void KvNode::EndSession(Session* session, bool drained) {
  {
    MutexLock lock(session->mu);
    if (session->closed) return;
    session->closed = true;
    for (const auto& [id, pin] : session->pins) Unpin(session, pin);
    session->pins.clear();
    for (auto it = session->reservations.begin(); it != session->reservations.end();) {
      // One that is being committed belongs to its PutEnd, which ends it either way.
      if (it->second.committing) {
        ++it;
        continue;
      }
      Abandon(session, it->second, drained);
      session->reservations.erase(it++);
    }
  }
  MutexLock lock(sessions_mu_);
  sessions_.erase(session->id);
}

// --- Lookups ---

absl::Status KvNode::Handle(const kv::MatchPrefixRequest& request,
                            kv::MatchPrefixResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.keys.size(), "keys"));
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  const absl::Span<const BlockKey> keys = request.keys;
  const std::vector<uint32_t>& runs = request.run_begins;
  size_t matched = 0;
  for (size_t r = 0; r < std::max<size_t>(runs.size(), 1); ++r) {
    const size_t begin = runs.empty() ? 0 : runs[r];
    const size_t end = r + 1 < runs.size() ? runs[r + 1] : keys.size();
    if (begin > end || end > keys.size())
      return absl::InvalidArgumentError("runs of keys: expected ascending from 0");
    const size_t here =
        MatchChain(*session->tenant, keys.subspan(begin, end - begin), clock_->Now());
    if (r == 0) response->matched = here;
    if (!runs.empty()) response->of_runs.push_back(here);
    matched += here;
  }
  const size_t missed = request.again ? 0 : keys.size() - matched;
  hits_.fetch_add(matched, std::memory_order_relaxed);
  misses_.fetch_add(missed, std::memory_order_relaxed);
  if (metrics_ != nullptr) {
    metrics_->hit_blocks->Add(matched);
    metrics_->hit_tokens->Add(matched * kTokensPerBlock);
    metrics_->miss_blocks->Add(missed);
    metrics_->miss_tokens->Add(missed * kTokensPerBlock);
  }
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::ExistsRequest& request, kv::ExistsResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.keys.size(), "keys"));
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  const Time now = clock_->Now();
  response->stored.assign(request.keys.size(), false);
  for (size_t i = 0; i < request.keys.size(); ++i) {
    response->stored[i] =
        index_.Contains(session->Own(request.keys[i]), now) ||
        (tier_ != nullptr && tier_->Contains({session->tenant->digest, request.keys[i]}));
  }
  return absl::OkStatus();
}

// --- Pins ---

Duration KvNode::PinTtl(Duration wanted) const {
  return wanted <= Duration(0) ? options_.max_pin_ttl : std::min(wanted, options_.max_pin_ttl);
}

absl::Status KvNode::Handle(const kv::GetStartRequest& request, kv::GetStartResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.keys.size(), "keys"));
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  const Time now = clock_->Now();
  const Time expires = now + PinTtl(request.pin_ttl);
  const uint32_t epoch = index_.NewEpoch();
  response->statuses.assign(request.keys.size(), absl::OkStatus());
  response->locations.assign(request.keys.size(), kv::BlockLocation{});
  MutexLock lock(session->mu);
  if (session->closed) return SessionGone(request.session_id);
  if (session->pins.size() + request.keys.size() > options_.max_pins_per_session) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the session holds ", session->pins.size(), " pins and asks for ",
                     request.keys.size(), " more: at most ", options_.max_pins_per_session));
  }
  for (size_t i = 0; i < request.keys.size(); ++i) {
    response->statuses[i] =
        PinOne(session.get(), request.keys[i], epoch, now, expires, &response->locations[i]);
  }
  return absl::OkStatus();
}

absl::Status KvNode::PinOne(Session* session, const BlockKey& key, uint32_t epoch, Time now,
                            Time expires, kv::BlockLocation* location) {
  Block* block = index_.Pin(session->Own(key), epoch, now);
  if (block == nullptr) return absl::NotFoundError("not stored");
  const uint64_t id = session->next_pin++;
  session->pins[id] = {block, block->extent.generation, expires};
  if (options_.grants) session->readable.Add(block->extent.offset, block->size);
  *location = {id,
               block->extent.offset,
               block->size,
               block->extent.generation,
               *block->slices,
               block->extra_copies.load(std::memory_order_relaxed)};
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::RenewPinsRequest& request, kv::RenewPinsResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.pin_ids.size(), "pins"));
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  const Time expires = clock_->Now() + PinTtl(request.pin_ttl);
  response->statuses.assign(request.pin_ids.size(), absl::OkStatus());
  MutexLock lock(session->mu);
  if (session->closed) return SessionGone(request.session_id);
  for (size_t i = 0; i < request.pin_ids.size(); ++i) {
    const auto it = session->pins.find(request.pin_ids[i]);
    if (it == session->pins.end()) {
      response->statuses[i] = PinGone();
    } else {
      it->second.expires = std::max(it->second.expires, expires);
    }
  }
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::ReleaseRequest& request, kv::ReleaseResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.pin_ids.size(), "pins"));
  if (request.generations.size() != request.pin_ids.size()) {
    return absl::InvalidArgumentError(absl::StrCat(request.pin_ids.size(), " pins and ",
                                                   request.generations.size(),
                                                   " generations: expected as many"));
  }
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  response->statuses.assign(request.pin_ids.size(), absl::OkStatus());
  MutexLock lock(session->mu);
  if (session->closed) return SessionGone(request.session_id);
  for (size_t i = 0; i < request.pin_ids.size(); ++i) {
    const auto it = session->pins.find(request.pin_ids[i]);
    if (it == session->pins.end() || it->second.generation != request.generations[i]) {
      response->statuses[i] = PinGone();
      continue;
    }
    Unpin(session.get(), it->second);
    session->pins.erase(it);
  }
  return absl::OkStatus();
}

void KvNode::Unpin(Session* session, const Pin& pin) {
  if (options_.grants) session->readable.Remove(pin.block->extent.offset);
  index_.Unpin(pin.block);
}

bool KvNode::MayTouch(uint64_t session_id, bool write, uint64_t offset, uint64_t length) {
  const auto found = FindSession(session_id);
  if (!found.ok()) return false;
  const std::shared_ptr<Session>& session = *found;
  MutexLock lock(session->mu);
  if (session->closed) return false;
  return (write ? session->writable : session->readable).Covers(offset, length);
}

absl::Status KvNode::ReadPinned(uint64_t session_id, const kv::ReadPiece& piece, uint8_t* out) {
  ASSIGN_OR_RETURN(const auto session, FindSession(session_id));
  MutexLock lock(session->mu);
  const auto it = session->pins.find(piece.pin_id);
  if (session->closed || it == session->pins.end()) return PinGone();
  const Block& block = *it->second.block;
  if (piece.offset > block.size || piece.length > block.size - piece.offset ||
      piece.length > kv::kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("read of ", piece.length, " bytes at ",
                                                   piece.offset, " of a block of ", block.size,
                                                   ", at most ", kv::kMaxChunkBytes, " at once"));
  }
  std::memcpy(out, arena_.data() + block.extent.offset + piece.offset, piece.length);
  return absl::OkStatus();
}

absl::Status KvNode::Handle(const kv::EraseRequest& request, kv::EraseResponse* response) {
  RETURN_IF_ERROR(CheckCount(request.keys.size(), "keys"));
  if (!request.generations.empty() && request.generations.size() != request.keys.size()) {
    return absl::InvalidArgumentError(absl::StrCat(request.keys.size(), " keys and ",
                                                   request.generations.size(),
                                                   " generations: expected none or as many"));
  }
  ASSIGN_OR_RETURN(const auto session, FindSession(request.session_id));
  response->statuses.assign(request.keys.size(), absl::OkStatus());
  const Time now = clock_->Now();
  for (size_t i = 0; i < request.keys.size(); ++i) {
    const StoredKey key = session->Own(request.keys[i]);
    const std::optional<uint64_t> generation =
        request.generations.empty() ? std::nullopt : std::make_optional(request.generations[i]);
    bool stored_is_bad = false;
    if (request.reason == kv::EraseReason::kCorrupt) {
      // Whose bytes are bad, ours or only the reader's copy? The block goes either way, the count
      // tells the operator.
      if (Block* block = index_.Pin(key, index_.NewEpoch(), now); block != nullptr) {
        stored_is_bad =
            !VerifySlices(*block->slices, arena_.subspan(block->extent.offset, block->size)).ok();
        index_.Unpin(block);
      }
    }
    bool erased = index_.Erase(key, generation);
    // A corrupt copy in memory says nothing of the one on disk, whose reads are checked.
    if (request.reason == kv::EraseReason::kRequested) RememberErasure(key);
    if (request.reason == kv::EraseReason::kRequested && tier_ != nullptr)
      erased |= EraseFromTier(*session->tenant, request.keys[i]);
    if (!erased) {
      response->statuses[i] = absl::NotFoundError("not stored, or another copy is");
    } else if (request.reason == kv::EraseReason::kCorrupt) {
      if (metrics_ != nullptr)
        metrics_->corrupt.With({stored_is_bad ? "stored" : "reader"}).Increment();
      LogError("corrupt block reported and erased",
               {{"node", options_.name},
                {"key", key.key.Hex()},
                {"client", session->name},
                {"stored_bytes", stored_is_bad ? "corrupt" : "intact"}});
    }
  }
  return absl::OkStatus();
}

// --- Time ---

void KvNode::Tick() {
  const Time now = clock_->Now();
  for (const auto& session : AllSessions()) {
    bool dead;
    {
      MutexLock lock(session->mu);
      dead = session->expires <= now;
    }
    if (dead) {
      LogWarn(
          "session expired",
          {{"node", options_.name}, {"client", session->name}, {"tenant", session->tenant->name}});
      if (metrics_ != nullptr) metrics_->expired.With({"session"}).Increment();
      EndSession(session.get(), /*drained=*/false);
    } else {
      ExpireInside(session.get(), now);
    }
  }
  FreeQuarantine(now, std::nullopt);
  if (tier_ != nullptr) EndLateGets(now);
  const size_t blocks = index_.ExpireDue(now);
  if (metrics_ != nullptr) metrics_->expired.With({"block"}).Add(blocks);
  EvictToWatermark(now);
  SetGauges(now);
}

void KvNode::ExpireInside(Session* session, Time now) {
  size_t pins = 0;
  {
    MutexLock lock(session->mu);
    for (auto it = session->pins.begin(); it != session->pins.end();) {
      if (it->second.expires > now) {
        ++it;
        continue;
      }
      Unpin(session, it->second);
      session->pins.erase(it++);
      ++pins;
    }
    for (auto it = session->reservations.begin(); it != session->reservations.end();) {
      if (it->second.expires > now || it->second.committing) {
        ++it;
        continue;
      }
      Abandon(session, it->second, /*drained=*/false);
      if (metrics_ != nullptr) metrics_->put_expired->Increment();
      session->reservations.erase(it++);
    }
  }
  if (pins == 0) return;
  if (metrics_ != nullptr) metrics_->expired.With({"pin"}).Add(pins);
  LogWarn("pins expired",
          {{"node", options_.name}, {"client", session->name}, {"pins", absl::StrCat(pins)}});
}

absl::Status KvNode::Handle(const kv::StatsRequest& request, kv::StatsResponse* response) {
  const AllocatorUsage usage = allocator_->usage();
  const IndexStats index = index_.stats();
  response->capacity_bytes = usage.capacity;
  response->used_bytes = usage.used;
  response->pinned_bytes = index.pinned_bytes;
  response->reserved_bytes = reserved_bytes_.load(std::memory_order_relaxed);
  std::copy(std::begin(index.kind_bytes), std::end(index.kind_bytes), response->kind_bytes);
  std::copy(std::begin(index.kind_blocks), std::end(index.kind_blocks), response->kind_blocks);
  response->hits = hits_.load(std::memory_order_relaxed);
  response->misses = misses_.load(std::memory_order_relaxed);
  response->evictions = index.evictions;
  response->incarnation = incarnation_;
  if (tier_ != nullptr) response->tier = tier_->stats();
  {
    MutexLock lock(replicas_mu_);
    response->replicas = replica_stats_;
    response->replicas.compared_ms_ago = static_cast<uint64_t>(
        std::max<int64_t>(0, (clock_->Now() - compared_) / std::chrono::milliseconds(1)));
  }
  {
    MutexLock lock(quarantine_mu_);
    response->quarantined_bytes = quarantined_bytes_;
  }
  MutexLock lock(sessions_mu_);
  response->sessions = sessions_.size();
  return absl::OkStatus();
}

void KvNode::SetGauges(Time now) {
  if (metrics_ == nullptr) return;
  kv::StatsResponse s;
  Handle(kv::StatsRequest{}, &s).IgnoreError();
  const std::string& node = options_.name;
  for (int k = 0; k < kNumBlockKinds; ++k) {
    const absl::string_view kind = BlockKindName(static_cast<BlockKind>(k + 1));
    metrics_->bytes.With({node, kind, "memory"}).Set(s.kind_bytes[k]);
    metrics_->blocks.With({node, kind, "memory"}).Set(s.kind_blocks[k]);
  }
  metrics_->capacity.With({node}).Set(s.capacity_bytes);
  metrics_->used.With({node}).Set(s.used_bytes);
  metrics_->pinned.With({node}).Set(s.pinned_bytes);
  metrics_->reserved.With({node}).Set(s.reserved_bytes);
  metrics_->quarantined.With({node}).Set(s.quarantined_bytes);
  metrics_->extra_bytes.With({node}).Set(index_.stats().extra_bytes);
  metrics_->sessions.With({node}).Set(s.sessions);
  size_t pins = 0;
  for (const auto& session : AllSessions()) {
    MutexLock lock(session->mu);
    pins += session->pins.size();
  }
  metrics_->pins.With({node}).Set(pins);
  SetTierGauges();
  MutexLock lock(tenants_mu_);
  for (const auto& [name, tenant] : tenants_) {
    metrics_->tenant_used.With({node, name.empty() ? "default" : name})
        .Set(tenant->used_bytes.load());
  }
}

}  // namespace oscarkv
