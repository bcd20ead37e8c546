#include "kvstore/repair/repairer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {
namespace {

constexpr size_t kKeysPerCall = 16384;
constexpr size_t kBlocksPerBatch = 8;
constexpr uint64_t kBytesPerBatch = 32 << 20;
constexpr Duration kIdleClient = std::chrono::seconds(60);
constexpr size_t kMostClients = 64;

}  // namespace

Repairer::Repairer(const RepairOptions& options, KvNode* node, const Membership* membership,
                   KvStubFactory make_stub, ConnectPeer connect, const Clock* clock,
                   KvRepairMetrics* metrics)
    : options_(options),
      node_(node),
      membership_(membership),
      make_stub_(std::move(make_stub)),
      connect_(std::move(connect)),
      clock_(clock),
      metrics_(metrics),
      hot_(options.hot),
      window_began_(clock->Now()) {
  node_->CountReads(HotPlan::ReportAt(options.hot));
}

Repairer::~Repairer() {
  Stop();
}

void Repairer::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Repairer::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool Repairer::PauseUntil(Time time) {
  MutexLock lock(mu_);
  while (!stop_ && clock_->Now() < time && changed_.WaitUntil(mu_, time)) {
  }
  return !stop_;
}

void Repairer::Run() {
  const bool hot = options_.hot.copies > 0;
  Time next = clock_->Now();
  while (PauseUntil(hot ? std::min(next, window_began_ + options_.hot.window) : next)) {
    if (hot && clock_->Now() >= window_began_ + options_.hot.window) RunHotRound();
    if (clock_->Now() < next) continue;
    next = clock_->Now() + options_.interval;
    RunRound();
  }
}

ReplicaStats Repairer::RunRound() {
  Findings findings = Look(/*leaving=*/false);
  const Time now = clock_->Now();
  RestoreAll(MakeView(now, false), &findings, now + options_.interval, /*paced=*/true);
  CloseIdleClients(clock_->Now());
  return findings.stats;
}

size_t Repairer::Drain(Time deadline) {
  Stop();
  {
    MutexLock lock(mu_);
    stop_ = false;  // this thread does the rest
  }
  size_t left = 0;
  // Twice: a peer that turns out to be gone has another in its place, and puts end meanwhile.
  for (int pass = 0; pass < 2 && clock_->Now() < deadline; ++pass) {
    Findings findings = Look(/*leaving=*/true);
    left = findings.copies.size();
    if (left == 0) break;
    RestoreAll(MakeView(clock_->Now(), true), &findings, deadline, /*paced=*/false);
    left = findings.stats.waiting_blocks;
  }
  LogInfo("kvstore node leaves its blocks to others",
          {{"node", options_.name}, {"not_copied", absl::StrCat(left)}});
  clients_.clear();
  return left;
}

// --- Who is there ---

void Repairer::SyncPeers(Time now) {
  const std::shared_ptr<const MemberList> list = membership_->Current();
  for (auto& [endpoint, peer] : peers_) peer.listed = false;
  for (const Member& member : list->members) {
    Peer& peer = peers_[member.endpoint];
    if (peer.stub == nullptr && member.endpoint != options_.self)
      peer.stub = make_stub_(member.endpoint);
    peer.member = member;
    peer.listed = true;
  }
  for (auto it = peers_.begin(); it != peers_.end();) {
    Peer& peer = it->second;
    if (!peer.listed && !peer.silent_since) peer.silent_since = now;
    const bool forget =
        !peer.listed && (peer.member.draining || now - *peer.silent_since >= options_.grace);
    it = forget ? peers_.erase(it) : std::next(it);
  }
}

RepairView Repairer::MakeView(Time now, bool leaving) const {
  std::vector<Member> members;
  std::vector<Presence> presence;
  for (const auto& [endpoint, peer] : peers_) {
    members.push_back(peer.member);
    if (endpoint == options_.self) {
      presence.push_back(leaving || peer.member.draining ? Presence::kGone : Presence::kHere);
    } else if (peer.member.draining ||
               (peer.silent_since && now - *peer.silent_since >= options_.grace)) {
      presence.push_back(Presence::kGone);
    } else {
      presence.push_back(peer.silent_since ? Presence::kSilent : Presence::kHere);
    }
  }
  const size_t replicas = ReplicasOf(members, options_.replicas);
  return RepairView(std::move(members), std::move(presence), replicas);
}

void Repairer::Judge(Peer* peer, const absl::Status& status, Time now) {
  // An old node that does not know the call is there all the same; it cannot be compared with.
  if (status.ok() || status.code() == absl::StatusCode::kUnimplemented) {
    if (peer->silent_since)
      LogInfo("repair: node is back", {{"node", options_.name}, {"peer", peer->member.endpoint}});
    peer->silent_since.reset();
    return;
  }
  if (peer->silent_since) return;
  peer->silent_since = now;
  LogWarn("repair: node does not answer",
          {{"node", options_.name}, {"peer", peer->member.endpoint}, {"why", status.ToString()}});
}

// --- What is missing ---

Repairer::Findings Repairer::Look(bool leaving) {
  looked_at_ = clock_->Now();
  SyncPeers(looked_at_);
  Findings findings;
  const bool listed = peers_.contains(options_.self);
  // Not registered yet, or one copy is all that is wanted: nothing to look after.
  if (!listed) return findings;
  findings.stats.known = true;
  findings.blocks = node_->ListBlocks(leaving ? Duration(0) : options_.settle);
  for (int attempt = 0;; ++attempt) {
    const RepairView view = MakeView(clock_->Now(), leaving);
    const uint32_t self = view.IndexOf(options_.self);
    const Survey survey = SurveyBlocks(view, self, findings.blocks);
    KvNode::DigestTable digests;
    for (uint32_t n = 0; n < view.members().size(); ++n) {
      if (n != self) digests[view.members()[n].endpoint] = survey.peers[n].digests;
    }
    node_->PublishDigests(std::move(digests));
    const std::vector<std::vector<uint32_t>> ask = CompareDigests(view, self, survey);
    // Who is there may have changed just now, and with it where blocks belong.
    if (attempt == 0 && !(MakeView(clock_->Now(), leaving) == view)) continue;
    findings.stored_elsewhere.assign(findings.blocks.size(), false);
    findings.waiting.assign(findings.blocks.size(), false);
    findings.no_room.assign(findings.blocks.size(), false);
    if (view.replicas() > 1) {
      for (uint32_t n = 0; n < ask.size(); ++n) CompareBlocks(view, n, ask[n], &findings);
    }
    Count(view, survey, &findings);
    return findings;
  }
}

// Per peer the blocks to ask for by key.
std::vector<std::vector<uint32_t>> Repairer::CompareDigests(const RepairView& view, uint32_t self,
                                                            const Survey& survey) {
  const size_t n = view.members().size();
  std::vector<absl::StatusOr<kv::CompareDigestsResponse>> answers(n,
                                                                  absl::UnknownError("no answer"));
  CallBarrier barrier;
  const Time deadline = SteadyClock::Get()->Now() + options_.call_timeout;
  for (uint32_t i = 0; i < n; ++i) {
    const Peer& peer = peers_.at(view.members()[i].endpoint);
    if (i == self || !peer.listed) continue;
    StartCall(peer.stub.get(), kv::CompareDigestsRequest{options_.self, survey.peers[i].digests},
              deadline, &barrier, &answers[i]);
  }
  barrier.Wait();
  std::vector<std::vector<uint32_t>> ask(n);
  for (uint32_t i = 0; i < n; ++i) {
    Peer& peer = peers_.at(view.members()[i].endpoint);
    if (i == self || !peer.listed) continue;
    Judge(&peer, answers[i].status(), clock_->Now());
    if (!answers[i].ok()) continue;
    for (const uint32_t bucket : answers[i]->differing) {
      const std::vector<uint32_t>& blocks = survey.peers[i].buckets[bucket];
      ask[i].insert(ask[i].end(), blocks.begin(), blocks.end());
    }
    ask[i].insert(ask[i].end(), survey.peers[i].guests.begin(), survey.peers[i].guests.end());
  }
  return ask;
}

void Repairer::CompareBlocks(const RepairView& view, uint32_t peer_index,
                             const std::vector<uint32_t>& ask, Findings* f) {
  const Time now = clock_->Now();
  std::map<uint32_t, std::vector<uint32_t>> by_tenant;
  for (const uint32_t b : ask) by_tenant[f->blocks[b].key.tenant].push_back(b);
  Peer& peer = peers_.at(view.members()[peer_index].endpoint);
  for (const auto& [tenant, blocks] : by_tenant) {
    for (size_t begin = 0; begin < blocks.size(); begin += kKeysPerCall) {
      const size_t end = std::min(begin + kKeysPerCall, blocks.size());
      kv::CompareBlocksRequest request;
      request.tenant_digest = f->blocks[blocks[begin]].tenant->digest;
      for (size_t i = begin; i < end; ++i) {
        const BlockIndex::Listed& block = f->blocks[blocks[i]];
        request.keys.push_back(block.key.key);
        request.idle_seconds.push_back(static_cast<uint32_t>(
            std::clamp<int64_t>((now - block.last_use) / std::chrono::seconds(1), 0, UINT32_MAX)));
      }
      const auto answer = CallAndWait(peer.stub.get(), std::move(request),
                                      SteadyClock::Get()->Now() + options_.call_timeout);
      Judge(&peer, answer.status(), clock_->Now());
      if (!answer.ok() || answer->states.size() != end - begin) return;
      for (size_t i = begin; i < end; ++i) {
        const uint32_t b = blocks[i];
        switch (answer->states[i - begin]) {
          case kv::CopyState::kStored:
            f->stored_elsewhere[b] = true;
            break;
          case kv::CopyState::kWanted:
            f->copies.push_back({b, peer_index, false});
            f->waiting[b] = true;
            break;
          case kv::CopyState::kNoRoom:
            f->no_room[b] = true;
            break;
          case kv::CopyState::kErased:
            node_->EraseCopy(f->blocks[b].key);
            break;
        }
      }
    }
  }
}

void Repairer::Count(const RepairView& view, const Survey& survey, Findings* f) {
  for (uint32_t b = 0; b < f->blocks.size() && view.replicas() > 1; ++b) {
    if (survey.silent_owner[b]) f->waiting[b] = true;
    f->stats.waiting_blocks += f->waiting[b];
    f->stats.no_node_blocks += survey.no_node[b] && !f->waiting[b];
    f->stats.no_room_blocks += f->no_room[b] && !f->waiting[b];
  }
  for (Copy& copy : f->copies) copy.last = !f->stored_elsewhere[copy.block];
  for (const auto& [endpoint, peer] : peers_)
    f->stats.silent_peers += peer.silent_since.has_value();
  Publish(f->stats);
}

void Repairer::Publish(const ReplicaStats& stats) {
  ReplicaStats now = stats;
  now.restored_blocks = restored_;
  node_->PublishReplicaStats(now, looked_at_);
  if (metrics_ == nullptr) return;
  metrics_->under_replicated.With({options_.name, "waiting"}).Set(now.waiting_blocks);
  metrics_->under_replicated.With({options_.name, "no_node"}).Set(now.no_node_blocks);
  metrics_->under_replicated.With({options_.name, "no_room"}).Set(now.no_room_blocks);
  metrics_->silent_peers.With({options_.name}).Set(now.silent_peers);
}

// --- Copies ---

void Repairer::RestoreAll(const RepairView& view, Findings* f, Time until, bool paced) {
  // The most recently used first; at a drain those first that would be lost.
  std::stable_sort(f->copies.begin(), f->copies.end(), [&](const Copy& a, const Copy& b) {
    if (!paced && a.last != b.last) return a.last;
    return f->blocks[a.block].last_use > f->blocks[b.block].last_use;
  });
  CopyAll(view, f->blocks, f->copies, Duration(0), until, paced, [&](size_t copy, bool there) {
    const uint32_t b = f->copies[copy].block;
    if (there && f->waiting[b]) {
      f->waiting[b] = false;
      --f->stats.waiting_blocks;
    }
    Publish(f->stats);
  });
  f->stats.restored_blocks = restored_;
}

void Repairer::CopyAll(const RepairView& view, absl::Span<const BlockIndex::Listed> blocks,
                       absl::Span<const Copy> copies, Duration ttl, Time until, bool paced,
                       const CopyDone& done) {
  std::vector<bool> taken(copies.size()), useless(view.members().size());
  for (size_t first = 0; first < copies.size(); ++first) {
    if (taken[first] || useless[copies[first].peer]) continue;
    if (clock_->Now() >= until || !PauseUntil(paced ? next_copy_ : Time{})) break;
    const uint32_t peer = copies[first].peer;
    const Tenant* tenant = blocks[copies[first].block].tenant;
    std::vector<const BlockIndex::Listed*> batch;
    std::vector<size_t> members;
    uint64_t bytes = 0;
    for (size_t c = first; c < copies.size() && batch.size() < kBlocksPerBatch &&
                           c < first + 8 * kBlocksPerBatch && bytes < kBytesPerBatch;
         ++c) {
      const BlockIndex::Listed& block = blocks[copies[c].block];
      if (taken[c] || copies[c].peer != peer || block.tenant != tenant) continue;
      batch.push_back(&block);
      members.push_back(c);
      bytes += block.size;
      taken[c] = true;
    }
    std::vector<bool> there(batch.size());
    uint64_t sent = 0;
    useless[peer] = !CopySome(view.members()[peer], tenant->name, batch, ttl, &there, &sent);
    if (paced && options_.rate > 0) {
      next_copy_ = std::max(next_copy_, clock_->Now()) +
                   Duration(static_cast<int64_t>(1e9 * static_cast<double>(sent) /
                                                 static_cast<double>(options_.rate)));
    }
    for (size_t i = 0; i < batch.size(); ++i) done(members[i], there[i]);
  }
}

void Repairer::CountCopies(const char* outcome, bool extra, size_t copies) {
  if (metrics_ == nullptr) return;
  (extra ? metrics_->hot_copies : metrics_->copies).With({outcome}).Add(copies);
}

bool Repairer::CopySome(const Member& peer, const std::string& tenant,
                        absl::Span<const BlockIndex::Listed* const> blocks, Duration ttl,
                        std::vector<bool>* there, uint64_t* sent) {
  const bool extra = ttl > Duration(0);
  const absl::StatusOr<KvClient*> client = ClientOf(peer, tenant);
  if (!client.ok()) {
    CountCopies("failed", extra, blocks.size());
    return false;
  }
  const Time now = clock_->Now();
  std::vector<std::unique_ptr<KvNode::Held>> held;
  std::vector<size_t> which;
  std::vector<BlockSpec> specs;
  for (size_t i = 0; i < blocks.size(); ++i) {
    std::unique_ptr<KvNode::Held> block = node_->Hold(blocks[i]->key);
    if (block == nullptr) {  // evicted meanwhile: nothing to copy, and nothing to wait for
      (*there)[i] = true;
      continue;
    }
    const Block& b = **block;
    specs.push_back({b.key.key, b.parent.key, b.placement, b.kind, b.size, ttl,
                     /*restored=*/true, std::max(now - blocks[i]->last_use, Duration(0))});
    held.push_back(std::move(block));
    which.push_back(i);
  }
  if (specs.empty()) return true;
  const Time deadline = SteadyClock::Get()->Now() + options_.put_timeout;
  auto batch = (*client)->StartPut(specs, deadline);
  std::vector<absl::Status> results(specs.size(), batch.status());
  if (batch.ok()) {
    std::vector<std::vector<Slice>> slices(specs.size());
    for (size_t i = 0; i < specs.size(); ++i) {
      const kv::SliceTable& table = *(*held[i])->slices;
      uint64_t at = 0;
      for (size_t s = 0; s < table.lengths.size(); ++s) {
        slices[i].push_back({at, table.lengths[s], table.crc32c[s]});
        at += table.lengths[s];
      }
      const absl::Span<const uint8_t> bytes = node_->BytesOf(*held[i]);
      // Read only: a put takes its bytes from there.
      const LocalPiece piece{0, bytes.size(), const_cast<uint8_t*>(bytes.data())};
      (*batch)->Write(i, absl::MakeConstSpan(&piece, 1));
    }
    results = (*batch)->Commit(slices, deadline);
    *sent += (*batch)->totals().bytes;
    if (metrics_ != nullptr) metrics_->bytes.Get().Add((*batch)->totals().bytes);
    batch->reset();
  }
  held.clear();
  bool usable = true;
  for (size_t i = 0; i < results.size(); ++i) {
    const char* outcome = OnResult(*blocks[which[i]], results[i]);
    restored_ += results[i].ok() && !extra;
    if (extra && results[i].ok()) outcome = "made";
    if (extra && absl::IsAlreadyExists(results[i])) outcome = "renewed";
    CountCopies(outcome, extra, 1);
    (*there)[which[i]] = results[i].ok() || absl::IsAlreadyExists(results[i]);
    usable &= !absl::IsUnavailable(results[i]) && !absl::IsDeadlineExceeded(results[i]);
  }
  return usable;
}

const char* Repairer::OnResult(const BlockIndex::Listed& block, const absl::Status& status) {
  if (status.ok()) return "restored";
  if (absl::IsAlreadyExists(status)) return "present";
  if (absl::IsResourceExhausted(status)) return "no_room";
  if (absl::IsFailedPrecondition(status)) {
    node_->EraseCopy(block.key);
    return "erased";
  }
  // The bytes that arrived differ from their checksums: are ours the bad ones?
  if (absl::IsDataLoss(status)) node_->CheckBlock(block.key, "stored").IgnoreError();
  return "failed";
}

// --- Extra copies ---

void Repairer::RunHotRound() {
  const Time now = clock_->Now();
  const Duration length = now - window_began_;
  window_began_ = now;
  std::vector<BlockIndex::Hot> hot = node_->EndReadWindow();
  const RepairView view = MakeView(now, false);
  const uint32_t self = view.IndexOf(options_.self);
  if (self == view.members().size()) return;  // not registered yet
  std::vector<uint32_t> nodes;
  std::erase_if(hot, [&](const BlockIndex::Hot& block) {
    view.Owners(block.placement, &nodes);
    return std::find(nodes.begin(), nodes.end(), self) == nodes.end();
  });
  size_t here = 0;
  for (uint32_t n = 0; n < view.members().size(); ++n) here += view.presence(n) != Presence::kGone;
  const auto most = static_cast<uint32_t>(here - std::min(here, view.replicas()));
  MakeExtraCopies(view, hot_.EndWindow(hot, length, view.replicas(), most, now));
  if (metrics_ != nullptr)
    metrics_->hot_blocks.With({options_.name}).Set(static_cast<double>(hot_.blocks_with_copies()));
}

void Repairer::MakeExtraCopies(const RepairView& view, const std::vector<HotPlan::Step>& steps) {
  const Time now = clock_->Now(), until = now + options_.interval;
  std::vector<BlockIndex::Listed> blocks;
  std::vector<Copy> copies;
  std::vector<std::vector<bool>> there(steps.size());  // per step and extra node
  std::vector<size_t> first_copy, untried;
  std::vector<uint32_t> nodes;
  for (uint32_t s = 0; s < steps.size(); ++s) {
    const BlockIndex::Hot& block = steps[s].block;
    blocks.push_back({block.key, block.placement, block.tenant, block.size, now});
    first_copy.push_back(copies.size());
    view.First(view.replicas() + steps[s].copies, block.placement, &nodes);
    for (size_t n = view.replicas(); n < nodes.size(); ++n) {
      // Readers look at the first extra nodes of the order: behind one that lacks it none is found.
      if (view.presence(nodes[n]) != Presence::kHere) break;
      copies.push_back({s, nodes[n], false});
      there[s].push_back(false);
    }
    untried.push_back(there[s].size());
  }
  CopyAll(view, blocks, copies, options_.hot.ttl, until, /*paced=*/true,
          [&](size_t copy, bool is_there) {
            const uint32_t s = copies[copy].block;
            --untried[s];
            there[s][copy - first_copy[s]] = is_there;
          });
  for (uint32_t s = 0; s < steps.size(); ++s) {
    if (untried[s] > 0 && clock_->Now() >= until) continue;  // no time for it: comes again
    const auto made = static_cast<uint32_t>(std::find(there[s].begin(), there[s].end(), false) -
                                            there[s].begin());
    hot_.Made(steps[s], made, clock_->Now());
    node_->SetExtraCopies(steps[s].block.key, made);
  }
}

absl::StatusOr<KvClient*> Repairer::ClientOf(const Member& peer, const std::string& tenant) {
  Client& client = clients_[{peer.endpoint, tenant}];
  client.used = clock_->Now();
  if (client.client != nullptr) return client.client.get();
  auto connected = connect_(peer, tenant);
  if (!connected.ok()) {
    LogWarn(
        "repair: cannot connect",
        {{"node", options_.name}, {"peer", peer.endpoint}, {"why", connected.status().ToString()}});
    clients_.erase({peer.endpoint, tenant});
    return connected.status();
  }
  client.client = *std::move(connected);
  return client.client.get();
}

void Repairer::CloseIdleClients(Time now) {
  std::erase_if(clients_, [&](const auto& entry) {
    return now - entry.second.used > kIdleClient || clients_.size() > kMostClients;
  });
}

}  // namespace oscarkv
