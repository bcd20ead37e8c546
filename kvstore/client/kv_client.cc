#include "kvstore/client/kv_client.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvstore/client/get.h"
#include "kvstore/client/put_batch.h"

namespace oscarkv {
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

// One request of a type per reachable group, all at the same time.
template <typename Request, typename MakeRequest>
std::vector<absl::StatusOr<typename Request::Response>> AskAll(const std::vector<NodeGroup>& groups,
                                                               Time deadline, MakeRequest make) {
  std::vector<absl::StatusOr<typename Request::Response>> answers(groups.size(),
                                                                  absl::UnknownError("no answer"));
  CallBarrier barrier;
  for (size_t g = 0; g < groups.size(); ++g) {
    const NodeGroup& group = groups[g];
    if (group.link == nullptr) {
      answers[g] = group.why;
    } else {
      StartCall(group.link->stub.get(), make(group), deadline, &barrier, &answers[g]);
    }
  }
  barrier.Wait();
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].link != nullptr) groups[g].connection->Judge(groups[g].link, answers[g].status());
  }
  return answers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         const KvStubFactory& make_stub) {
  if (options.nodes.empty()) return absl::InvalidArgumentError("kvstore client: no nodes given");
  for (const std::string& node : options.nodes) {
    if (node.empty())
      return absl::InvalidArgumentError("kvstore client: an empty node name; expected host:port");
  }
  if (options.pin_ttl <= Duration(0) || options.connect_timeout <= Duration(0)) {
    return absl::InvalidArgumentError(
        "kvstore client: pin_ttl and connect_timeout must be positive");
  }
  auto client = std::make_unique<KvClientImpl>(options, StaticMembership(options.nodes), make_stub);
  RETURN_IF_ERROR(client->Start());
  return client;
}

KvClientImpl::KvClientImpl(const KvClientOptions& options, const Membership& membership,
                           const KvStubFactory& make_stub)
    : options_(options),
      members_(membership.Current()),
      placement_(members_->nodes),
      metrics_(options.metrics == nullptr ? nullptr
                                          : std::make_unique<KvClientMetrics>(options.metrics)),
      maintainer_(options, metrics_.get()) {
  for (const std::string& node : members_->nodes) {
    connections_.push_back(std::make_unique<NodeConnection>(node, make_stub(node), metrics_.get(),
                                                            [this] { maintainer_.Wake(); }));
  }
}

KvClientImpl::~KvClientImpl() {
  maintainer_.Stop();
}

absl::Status KvClientImpl::Start() {
  std::vector<NodeConnection*> connections;
  for (const auto& c : connections_) connections.push_back(c.get());
  maintainer_.Start(std::move(connections));
  maintainer_.WaitFirstRound(SteadyClock::Get()->Now() + options_.connect_timeout);
  std::string why;
  for (const auto& c : connections_) {
    absl::Status down;
    if (c->link(&down) != nullptr) return absl::OkStatus();
    absl::StrAppend(&why, why.empty() ? "" : "; ", down.message());
  }
  return absl::UnavailableError(why);
}

template <typename F>
std::vector<NodeGroup> KvClientImpl::GroupByOwner(size_t count, F placement_of) const {
  std::vector<NodeGroup> by_node(connections_.size());
  const BlockKey* last = nullptr;
  size_t owner = 0;
  for (size_t i = 0; i < count; ++i) {
    const BlockKey& key = placement_of(i);
    if (last == nullptr || !(key == *last)) owner = placement_.OwnerOf(key);
    last = &key;
    by_node[owner].items.push_back(i);
  }
  std::vector<NodeGroup> groups;
  for (size_t n = 0; n < by_node.size(); ++n) {
    if (by_node[n].items.empty()) continue;
    by_node[n].connection = connections_[n].get();
    by_node[n].link = connections_[n]->link(&by_node[n].why);
    groups.push_back(std::move(by_node[n]));
  }
  return groups;
}

absl::StatusOr<size_t> KvClientImpl::Match(absl::Span<const BlockKey> chain, Time deadline) {
  const OpTimer timer(metrics_.get(), "match");
  const auto groups = GroupByOwner(
      chain.size(), [&](size_t i) -> const BlockKey& { return PlacementOf(chain, i); });
  const auto answers = AskAll<kv::MatchPrefixRequest>(groups, deadline, [&](const NodeGroup& g) {
    return kv::MatchPrefixRequest{g.link->grant.session_id, Pick(chain, g.items)};
  });
  // The run ends at the first key that its owner does not have; a node that did not answer has
  // none.
  size_t matched = chain.size();
  for (size_t g = 0; g < groups.size(); ++g) {
    const size_t here = answers[g].ok() ? answers[g]->matched : 0;
    if (here < groups[g].items.size()) matched = std::min(matched, groups[g].items[here]);
    if (!answers[g].ok() && metrics_ != nullptr) {
      metrics_->errors.With({"match", CodeLabel(answers[g].status())}).Add(groups[g].items.size());
    }
  }
  if (metrics_ != nullptr) {
    metrics_->matched_tokens.With({"hit"}).Add(matched * kTokensPerBlock);
    metrics_->matched_tokens.With({"miss"}).Add((chain.size() - matched) * kTokensPerBlock);
  }
  return matched;
}

std::vector<bool> KvClientImpl::Exists(absl::Span<const BlockKey> keys,
                                       absl::Span<const BlockKey> placement, Time deadline) {
  std::vector<bool> stored(keys.size(), false);
  if (!CheckPlacement(keys, placement).ok()) return stored;
  const auto groups =
      GroupByOwner(keys.size(), [&](size_t i) -> const BlockKey& { return placement[i]; });
  const auto answers = AskAll<kv::ExistsRequest>(groups, deadline, [&](const NodeGroup& g) {
    return kv::ExistsRequest{g.link->grant.session_id, Pick(keys, g.items)};
  });
  for (size_t g = 0; g < groups.size(); ++g) {
    if (!answers[g].ok() || answers[g]->stored.size() != groups[g].items.size()) continue;
    for (size_t i = 0; i < groups[g].items.size(); ++i)
      stored[groups[g].items[i]] = answers[g]->stored[i];
  }
  return stored;
}

absl::Status KvClientImpl::Erase(absl::Span<const BlockKey> keys,
                                 absl::Span<const BlockKey> placement, Time deadline) {
  RETURN_IF_ERROR(CheckPlacement(keys, placement));
  const auto groups =
      GroupByOwner(keys.size(), [&](size_t i) -> const BlockKey& { return placement[i]; });
  const auto answers = AskAll<kv::EraseRequest>(groups, deadline, [&](const NodeGroup& g) {
    return kv::EraseRequest{
        g.link->grant.session_id, Pick(keys, g.items), kv::EraseReason::kRequested, {}};
  });
  // A key that is not stored is as good as erased.
  for (const auto& answer : answers) RETURN_IF_ERROR(answer.status());
  return absl::OkStatus();
}

std::vector<KvNodeStats> KvClientImpl::Stats(Time deadline) {
  std::vector<NodeGroup> groups;
  for (const auto& c : connections_) {
    groups.emplace_back();
    groups.back().connection = c.get();
    groups.back().link = c->link(&groups.back().why);
  }
  const auto answers = AskAll<kv::StatsRequest>(
      groups, deadline, [](const NodeGroup&) { return kv::StatsRequest{}; });
  std::vector<KvNodeStats> out(groups.size());
  for (size_t n = 0; n < groups.size(); ++n) {
    KvNodeStats& o = out[n];
    o.node = groups[n].connection->node();
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
  }
  return out;
}

std::vector<absl::Status> KvClientImpl::Get(absl::Span<const GetRequest> requests, Time deadline,
                                            TransferTotals* totals) {
  const OpTimer timer(metrics_.get(), "get");
  std::vector<absl::Status> statuses(requests.size());
  std::vector<size_t> open(requests.size());
  for (size_t i = 0; i < open.size(); ++i) open[i] = i;
  LaneTotals moved;
  // A pin lost on the way is worth one more try, with a fresh pin.
  for (int attempt = 0; attempt < 2 && !open.empty(); ++attempt) {
    std::vector<NodeGroup> groups = GroupByOwner(
        open.size(), [&](size_t i) -> const BlockKey& { return requests[open[i]].placement; });
    for (NodeGroup& group : groups) {
      for (size_t& item : group.items) item = open[item];
    }
    GetAll(requests, groups, options_.pin_ttl, deadline, metrics_.get(), &statuses, &moved);
    std::erase_if(open, [&](size_t i) { return !absl::IsAborted(statuses[i]); });
    if (metrics_ != nullptr) metrics_->aborted_reads.Get().Add(open.size());
  }
  if (totals != nullptr) *totals = moved.totals();
  CountErrors(metrics_.get(), "get", statuses);
  return statuses;
}

absl::StatusOr<std::unique_ptr<PutBatch>> KvClientImpl::StartPut(absl::Span<const BlockSpec> items,
                                                                 Time deadline) {
  const OpTimer timer(metrics_.get(), "put_start");
  const auto groups =
      GroupByOwner(items.size(), [&](size_t i) -> const BlockKey& { return items[i].placement; });
  const Time started = SteadyClock::Get()->Now();
  const uint64_t put_id = next_put_.fetch_add(1);
  auto answers = AskAll<kv::PutStartRequest>(groups, deadline, [&](const NodeGroup& g) {
    kv::PutStartRequest request{g.link->grant.session_id, {}, put_id};
    for (size_t i : g.items)
      request.items.push_back(
          {items[i].key, items[i].parent, items[i].kind, items[i].size, items[i].ttl});
    return request;
  });
  auto batch = std::make_unique<PutBatchImpl>(items, metrics_.get());
  for (size_t g = 0; g < groups.size(); ++g)
    batch->AddGroup(groups[g], std::move(answers[g]), started);
  return batch;
}

}  // namespace oscarkv
