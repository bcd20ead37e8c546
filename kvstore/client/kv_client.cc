#include "kvstore/client/kv_client.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvstore/client/get.h"
#include "kvstore/client/put_batch.h"

namespace oscarkv {

// Where the search for a run of a chain stands.
struct RunSearch {
  size_t begin, end;            // keys of the chain
  size_t have;                  // [begin, have) were found
  std::vector<uint32_t> nodes;  // to ask, in this order
  size_t next = 0;
  std::string reason;       // why the last node asked did not settle it
  bool unanswered = false;  // it did not even answer
  bool complete() const { return have == end; }
  bool open() const { return !complete() && next < nodes.size(); }
};

namespace {

// Observes the time of an operation when it ends.
class OpTimer {
 public:
  OpTimer(KvClientMetrics* metrics, absl::string_view op)
      : histogram_(metrics == nullptr ? nullptr : &metrics->op_seconds.HistogramWith({op})),
        start_(SteadyClock::Get()->Now()) {}
  ~OpTimer() {
    if (histogram_ != nullptr) histogram_->Observe(Seconds(SteadyClock::Get()->Now() - start_));
  }

 private:
  Histogram* const histogram_;
  const Time start_;
};

std::vector<BlockKey> Pick(absl::Span<const BlockKey> keys, const std::vector<size_t>& items) {
  std::vector<BlockKey> out;
  out.reserve(items.size());
  for (size_t i : items) out.push_back(keys[i]);
  return out;
}

absl::Status CheckPlacement(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement) {
  if (keys.size() == placement.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(keys.size(), " keys and ", placement.size(),
                                                 " placement keys: expected as many"));
}

// Collects the items of a call by the node that serves them.
class Grouper {
 public:
  explicit Grouper(const ViewPtr& view) : view_(view) {}
  void Add(uint32_t node, size_t item, bool may_leave = false) {
    const auto [it, is_new] = at_.try_emplace({node, may_leave}, groups_.size());
    if (is_new) {
      NodeGroup group;
      group.connection = view_->connections[node].get();
      group.link = group.connection->link(&group.why);
      group.may_leave = may_leave;
      groups_.push_back(std::move(group));
    }
    groups_[it->second].items.push_back(item);
  }
  const std::vector<NodeGroup>& groups() const { return groups_; }

 private:
  const ViewPtr view_;
  absl::flat_hash_map<std::pair<uint32_t, bool>, size_t> at_;
  std::vector<NodeGroup> groups_;
};

// Calls `add(i, order)` for the items 0..count-1 with the nodes that `choose` gives for their
// placement; items of one placement follow each other and are asked for once.
template <typename Placements, typename Choose, typename Add>
void ForEachItem(size_t count, Placements placement_of, Choose choose, Add add) {
  std::vector<uint32_t> order;
  for (size_t i = 0; i < count; ++i) {
    if (i == 0 || placement_of(i) != placement_of(i - 1)) order = choose(placement_of(i));
    add(i, order);
  }
}

// One request of a type per reachable group, all at the same time. Groups that may be left have
// until `leave_at`, which is before the deadline.
template <typename Request, typename MakeRequest>
std::vector<absl::StatusOr<typename Request::Response>> AskAll(const std::vector<NodeGroup>& groups,
                                                               Time deadline, Time leave_at,
                                                               MakeRequest make) {
  std::vector<absl::StatusOr<typename Request::Response>> answers(groups.size(),
                                                                  absl::UnknownError("no answer"));
  CallBarrier barrier;
  for (size_t g = 0; g < groups.size(); ++g) {
    const NodeGroup& group = groups[g];
    if (group.link == nullptr) {
      answers[g] = group.why;
    } else {
      StartCall(group.link->stub.get(), make(group), group.may_leave ? leave_at : deadline,
                &barrier, &answers[g]);
    }
  }
  barrier.Wait();
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].link != nullptr) groups[g].connection->Judge(groups[g].link, answers[g].status());
  }
  return answers;
}

std::vector<RunSearch> RunsOf(absl::Span<const BlockKey> chain, ReplicaChooser* chooser) {
  std::vector<RunSearch> runs;
  for (size_t i = 0; i < chain.size(); ++i) {
    if (i == 0 || PlacementOf(chain, i) != PlacementOf(chain, i - 1)) {
      runs.push_back({i, i, i, chooser->ForLookup(PlacementOf(chain, i)), 0, "", false});
    }
    runs.back().end = i + 1;
  }
  return runs;
}

// Which runs to ask for in this round: all in the first. Later those whose node did not answer, and
// of the others the first `window`, since what lies behind a gap does not matter.
std::vector<size_t> RunsToAsk(const std::vector<RunSearch>& runs, int round) {
  std::vector<size_t> ask;
  size_t window = size_t{1} << std::min(round, 30);
  for (size_t r = 0; r < runs.size(); ++r) {
    if (runs[r].complete()) continue;
    if (!runs[r].open()) break;  // a gap for good
    if (round > 0 && !runs[r].unanswered) {
      if (window == 0) continue;
      --window;
    }
    ask.push_back(r);
  }
  return ask;
}

kv::MatchPrefixRequest MatchRequest(const NodeGroup& group, absl::Span<const BlockKey> chain,
                                    const std::vector<RunSearch>& runs, bool again) {
  kv::MatchPrefixRequest request{group.link->grant.session_id, {}, {}, again};
  for (size_t r : group.items) {
    request.run_begins.push_back(static_cast<uint32_t>(request.keys.size()));
    request.keys.insert(request.keys.end(), chain.begin() + runs[r].have,
                        chain.begin() + runs[r].end);
  }
  return request;
}

// Another replica may do better.
bool WorthAnother(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsUnavailable(status) || absl::IsDataLoss(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsAborted(status) ||
         absl::IsResourceExhausted(status) || absl::IsInternal(status);
}

// What a put may wait for one replica while others do their part.
constexpr Duration kPutPatience = std::chrono::seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         const KvStubFactory& make_stub) {
  if (options.nodes.empty()) return absl::InvalidArgumentError("kvstore client: no nodes given");
  ASSIGN_OR_RETURN(std::unique_ptr<StaticMembership> membership,
                   StaticMembership::Parse(options.nodes));
  const size_t nodes = membership->Current()->members.size();
  if (options.write_quorum > static_cast<int>(nodes)) {
    return absl::InvalidArgumentError(absl::StrCat("kvstore client: a write quorum of ",
                                                   options.write_quorum, " with ", nodes,
                                                   " nodes: expected at most as many"));
  }
  return CreateKvClient(options, std::move(membership), make_stub);
}

absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         std::unique_ptr<Membership> membership,
                                                         const KvStubFactory& make_stub) {
  if (options.pin_ttl <= Duration(0) || options.connect_timeout <= Duration(0)) {
    return absl::InvalidArgumentError(
        "kvstore client: pin_ttl and connect_timeout must be positive");
  }
  if (options.replicas < 0 || options.replicas > kMaxReplicas || options.write_quorum < 1 ||
      (options.replicas > 0 && options.write_quorum > options.replicas)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kvstore client: ", options.replicas, " replicas and a write quorum of ",
        options.write_quorum, ": expected up to ", kMaxReplicas,
        " replicas (0: two when there are two nodes) and a quorum from 1 to their number"));
  }
  auto client = std::make_unique<KvClientImpl>(options, std::move(membership), make_stub);
  RETURN_IF_ERROR(client->Start());
  return client;
}

KvClientImpl::KvClientImpl(const KvClientOptions& options, std::unique_ptr<Membership> membership,
                           const KvStubFactory& make_stub)
    : options_(options),
      make_stub_(make_stub),
      membership_(std::move(membership)),
      metrics_(options.metrics == nullptr ? nullptr
                                          : std::make_unique<KvClientMetrics>(options.metrics)),
      maintainer_(options, metrics_.get()) {}

KvClientImpl::~KvClientImpl() {
  membership_->Listen(nullptr);
  maintainer_.Stop();
}

absl::Status KvClientImpl::Start() {
  Refresh();
  maintainer_.Start();
  membership_->Listen([this] { Refresh(); });
  Refresh();  // what changed in between
  maintainer_.WaitFirstRound(SteadyClock::Get()->Now() + options_.connect_timeout);
  std::string why;
  for (const auto& c : view()->connections) {
    absl::Status down;
    if (c->link(&down) != nullptr) return absl::OkStatus();
    absl::StrAppend(&why, why.empty() ? "" : "; ", down.message());
  }
  if (why.empty())
    why = absl::StrCat("no kvstore node is registered; ", membership_->state().error);
  return absl::UnavailableError(why);
}

ViewPtr KvClientImpl::view() const {
  MutexLock lock(mu_);
  return view_;
}

void KvClientImpl::Refresh() {
  // Also serialises: Start and the membership's thread.
  ViewPtr old;  // released behind the lock
  std::vector<std::shared_ptr<NodeConnection>> connections;
  {
    MutexLock lock(mu_);
    const std::shared_ptr<const MemberList> members = membership_->Current();
    if (metrics_ != nullptr) {
      metrics_->members.Get().Set(static_cast<double>(members->members.size()));
      metrics_->connected.Get().Set(membership_->state().connected);
    }
    if (view_ != nullptr && view_->members->revision == members->revision) return;
    absl::flat_hash_map<std::string, std::shared_ptr<NodeConnection>> known;
    if (view_ != nullptr) {
      for (const auto& c : view_->connections) known[c->node()] = c;
    }
    for (const Member& member : members->members) {
      std::shared_ptr<NodeConnection>& c = known[member.endpoint];
      if (c == nullptr) {
        c = std::make_shared<NodeConnection>(member.endpoint, make_stub_(member.endpoint),
                                             metrics_.get(), [this] { maintainer_.Wake(); });
        if (view_ != nullptr) c->Joined();
      }
      c->Expect(member.incarnation);
      connections.push_back(c);
    }
    old = std::exchange(view_, std::make_shared<const ClusterView>(
                                   members, connections, options_.replicas, options_.zone));
    maintainer_.SetConnections(std::move(connections));
  }
}

Time KvClientImpl::LeaveAt(Time deadline) const {
  return std::min(deadline, SteadyClock::Get()->Now() + lookup_times_.Slow());
}

void KvClientImpl::CountFailovers(absl::string_view op, absl::string_view reason, size_t blocks) {
  if (metrics_ != nullptr && blocks > 0) metrics_->failovers.With({op, reason}).Add(blocks);
}

absl::StatusOr<size_t> KvClientImpl::Match(absl::Span<const BlockKey> chain, Time deadline) {
  const OpTimer timer(metrics_.get(), "match");
  ReplicaChooser chooser(view());
  std::vector<RunSearch> runs = RunsOf(chain, &chooser);
  for (int round = 0; round == 0 || SteadyClock::Get()->Now() < deadline; ++round) {
    Grouper grouper(chooser.view());
    for (size_t r : RunsToAsk(runs, round)) {
      grouper.Add(runs[r].nodes[runs[r].next], r, runs[r].next + 1 < runs[r].nodes.size());
    }
    const std::vector<NodeGroup>& groups = grouper.groups();
    if (groups.empty()) break;
    const Time asked = SteadyClock::Get()->Now();
    const auto answers = AskAll<kv::MatchPrefixRequest>(
        groups, deadline, LeaveAt(deadline),
        [&](const NodeGroup& g) { return MatchRequest(g, chain, runs, round > 0); });
    for (size_t g = 0; g < groups.size(); ++g) {
      TakeMatches(groups[g], answers[g], round, &runs);
    }
    lookup_times_.Add(SteadyClock::Get()->Now() - asked);
  }
  // The run ends at the first key that nobody has.
  size_t matched = chain.size();
  for (const RunSearch& run : runs) {
    if (!run.complete()) {
      matched = run.have;
      break;
    }
  }
  if (metrics_ != nullptr) {
    metrics_->matched_tokens.With({"hit"}).Add(matched * kTokensPerBlock);
    metrics_->matched_tokens.With({"miss"}).Add((chain.size() - matched) * kTokensPerBlock);
  }
  return matched;
}

void KvClientImpl::TakeMatches(const NodeGroup& group,
                               const absl::StatusOr<kv::MatchPrefixResponse>& answer, int round,
                               std::vector<RunSearch>* runs) {
  const bool fits = answer.ok() && answer->of_runs.size() == group.items.size();
  for (size_t k = 0; k < group.items.size(); ++k) {
    RunSearch& run = (*runs)[group.items[k]];
    ++run.next;
    if (fits) {
      const size_t here = std::min<size_t>(answer->of_runs[k], run.end - run.have);
      if (round > 0) CountFailovers("match", run.reason, here);
      run.have += here;
    }
    run.unanswered = !fits;
    run.reason = answer.ok() ? "not_found" : CodeLabel(answer.status());
    if (!fits && metrics_ != nullptr)
      metrics_->errors.With({"match", run.reason}).Add(run.end - run.have);
  }
}

std::vector<bool> KvClientImpl::Exists(absl::Span<const BlockKey> keys,
                                       absl::Span<const BlockKey> placement, Time deadline) {
  std::vector<bool> stored(keys.size(), false);
  if (!CheckPlacement(keys, placement).ok()) return stored;
  ReplicaChooser chooser(view());
  for (size_t rank = 0; rank == 0 || SteadyClock::Get()->Now() < deadline; ++rank) {
    Grouper grouper(chooser.view());
    ForEachItem(
        keys.size(), [&](size_t i) -> const BlockKey& { return placement[i]; },
        [&](const BlockKey& p) { return chooser.ForLookup(p); },
        [&](size_t i, const std::vector<uint32_t>& nodes) {
          if (!stored[i] && rank < nodes.size())
            grouper.Add(nodes[rank], i, rank + 1 < nodes.size());
        });
    const std::vector<NodeGroup>& groups = grouper.groups();
    if (groups.empty()) break;
    const auto answers =
        AskAll<kv::ExistsRequest>(groups, deadline, LeaveAt(deadline), [&](const NodeGroup& g) {
          return kv::ExistsRequest{g.link->grant.session_id, Pick(keys, g.items)};
        });
    for (size_t g = 0; g < groups.size(); ++g) {
      if (!answers[g].ok() || answers[g]->stored.size() != groups[g].items.size()) continue;
      for (size_t i = 0; i < groups[g].items.size(); ++i)
        stored[groups[g].items[i]] = answers[g]->stored[i];
    }
  }
  return stored;
}

absl::Status KvClientImpl::Erase(absl::Span<const BlockKey> keys,
                                 absl::Span<const BlockKey> placement, Time deadline) {
  RETURN_IF_ERROR(CheckPlacement(keys, placement));
  ReplicaChooser chooser(view());
  Grouper grouper(chooser.view());
  const Time now = SteadyClock::Get()->Now();
  ForEachItem(
      keys.size(),
      [&](size_t i) { return std::make_pair(placement[i], extra_copies_.Of(keys[i], now)); },
      [&](const auto& p) { return chooser.All(p.first, p.second); },
      [&](size_t i, const std::vector<uint32_t>& nodes) {
        for (uint32_t n : nodes) grouper.Add(n, i);
      });
  for (const BlockKey& key : keys) extra_copies_.Forget(key);
  const auto answers =
      AskAll<kv::EraseRequest>(grouper.groups(), deadline, deadline, [&](const NodeGroup& g) {
        return kv::EraseRequest{
            g.link->grant.session_id, Pick(keys, g.items), kv::EraseReason::kRequested, {}};
      });
  // A key that is not stored is as good as erased.
  for (const auto& answer : answers) RETURN_IF_ERROR(answer.status());
  return absl::OkStatus();
}

KvStoreView KvClientImpl::View() const {
  const MembershipState state = membership_->state();
  return {static_cast<int>(view()->replicas), state.source, state.connected, state.error};
}

std::vector<KvNodeStats> KvClientImpl::Stats(Time deadline) {
  const ViewPtr view = this->view();
  std::vector<NodeGroup> groups(view->connections.size());
  for (size_t n = 0; n < groups.size(); ++n) {
    groups[n].connection = view->connections[n].get();
    groups[n].link = groups[n].connection->link(&groups[n].why);
  }
  const auto answers = AskAll<kv::StatsRequest>(
      groups, deadline, deadline, [](const NodeGroup&) { return kv::StatsRequest{}; });
  std::vector<KvNodeStats> out(groups.size());
  for (size_t n = 0; n < groups.size(); ++n) {
    KvNodeStats& o = out[n];
    const Member& member = view->members->members[n];
    o.node = member.endpoint;
    o.zone = member.zone;
    o.weight = member.weight;
    o.draining = member.draining;
    o.reachable = answers[n].ok();
    if (!o.reachable) {
      o.error = std::string(answers[n].status().message());
      continue;
    }
    const kv::StatsResponse& s = *answers[n];
    o.lanes = groups[n].link->lane;
    o.capacity_bytes = s.capacity_bytes;
    o.used_bytes = s.used_bytes;
    o.pinned_bytes = s.pinned_bytes;
    o.reserved_bytes = s.reserved_bytes;
    o.quarantined_bytes = s.quarantined_bytes;
    std::copy(std::begin(s.kind_bytes), std::end(s.kind_bytes), o.kind_bytes);
    std::copy(std::begin(s.kind_blocks), std::end(s.kind_blocks), o.kind_blocks);
    o.hits = s.hits;
    o.misses = s.misses;
    o.evictions = s.evictions;
    o.sessions = s.sessions;
    o.tier = s.tier;
    o.replicas = s.replicas;
  }
  return out;
}

std::vector<absl::Status> KvClientImpl::Get(absl::Span<const GetRequest> requests, Time deadline,
                                            TransferTotals* totals) {
  const OpTimer timer(metrics_.get(), "get");
  struct Search {
    std::vector<uint32_t> nodes;  // to ask, in this order
    size_t at = 0;
    bool lost_pin = false;  // at this node: worth one more try, with a fresh pin
    std::string reason;     // why the node before did not do
  };
  ReplicaChooser chooser(view());
  std::vector<Search> searches(requests.size());
  std::vector<size_t> open;
  std::vector<absl::Status> statuses(requests.size(),
                                     absl::UnavailableError("the store has no nodes"));
  const Time now = SteadyClock::Get()->Now();
  ForEachItem(
      requests.size(),
      [&](size_t i) {
        return std::make_pair(requests[i].placement, extra_copies_.Of(requests[i].key, now));
      },
      [&](const auto& p) { return chooser.ForRead(p.first, p.second); },
      [&](size_t i, const std::vector<uint32_t>& nodes) {
        searches[i].nodes = nodes;
        for (const LocalPiece& piece : requests[i].pieces) chooser.Plan(nodes, piece.length);
        if (!nodes.empty()) open.push_back(i);
      });
  LaneTotals moved;
  while (!open.empty()) {
    Grouper grouper(chooser.view());
    for (size_t i : open) {
      const Search& s = searches[i];
      grouper.Add(s.nodes[s.at], i, s.at + 1 < s.nodes.size());
    }
    GetAll(requests, grouper.groups(), {options_.pin_ttl, deadline, &pin_times_, &extra_copies_},
           metrics_.get(), &statuses, &moved);
    std::erase_if(open, [&](size_t i) {
      Search& s = searches[i];
      if (statuses[i].ok() && s.at > 0) CountFailovers("get", s.reason, 1);
      if (absl::IsNotFound(statuses[i])) extra_copies_.Forget(requests[i].key);
      if (absl::IsAborted(statuses[i]) && metrics_ != nullptr)
        metrics_->aborted_reads.Get().Increment();
      if (absl::IsAborted(statuses[i]) && !s.lost_pin) {
        s.lost_pin = true;
        return false;
      }
      if (!WorthAnother(statuses[i]) || s.at + 1 == s.nodes.size()) return true;
      if (SteadyClock::Get()->Now() >= deadline) return true;
      ++s.at;
      s.lost_pin = false;
      s.reason = CodeLabel(statuses[i]);
      return false;
    });
  }
  if (totals != nullptr) *totals = moved.totals();
  CountErrors(metrics_.get(), "get", statuses);
  return statuses;
}

absl::StatusOr<std::unique_ptr<PutBatch>> KvClientImpl::StartPut(absl::Span<const BlockSpec> items,
                                                                 Time deadline) {
  const OpTimer timer(metrics_.get(), "put_start");
  const ViewPtr view = this->view();
  const uint64_t put_id = next_put_.fetch_add(1);
  auto batch = std::make_unique<PutBatchImpl>(items, view, options_.write_quorum, metrics_.get());
  // The second round is for what nodes left out that just turned out to be gone.
  std::vector<std::vector<uint32_t>> asked(items.size());
  for (int round = 0; round < 2; ++round) {
    ReplicaChooser chooser(view);
    Grouper grouper(view);
    ForEachItem(
        items.size(), [&](size_t i) -> const BlockKey& { return items[i].placement; },
        [&](const BlockKey& p) { return chooser.ForWrite(p); },
        [&](size_t i, const std::vector<uint32_t>& nodes) {
          if (round > 0 && !batch->LacksNode(i)) return;
          for (uint32_t n : nodes) {
            if (std::find(asked[i].begin(), asked[i].end(), n) != asked[i].end()) continue;
            if (round > 0 && chooser.condition(n).link == nullptr) continue;
            asked[i].push_back(n);
            grouper.Add(n, i, nodes.size() > 1);
          }
        });
    if (grouper.groups().empty()) break;
    const Time started = SteadyClock::Get()->Now();
    auto answers = AskAll<kv::PutStartRequest>(
        grouper.groups(), deadline, std::min(deadline, started + kPutPatience),
        [&](const NodeGroup& g) {
          kv::PutStartRequest request{g.link->grant.session_id, {}, put_id};
          for (size_t i : g.items)
            request.items.push_back({items[i].key, items[i].parent, items[i].kind, items[i].size,
                                     items[i].ttl, items[i].placement, items[i].restored,
                                     items[i].idle});
          return request;
        });
    for (size_t g = 0; g < answers.size(); ++g)
      batch->AddGroup(grouper.groups()[g], std::move(answers[g]), started);
  }
  batch->Started();
  return batch;
}

}  // namespace oscarkv
