// One thread serves all nodes. Calls to different nodes run at the same time, so that a node that
// does not answer delays the others by at most the timeout of one call, which is a fraction of the
// sessions' TTL.
#include "kvstore/client/maintainer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {
namespace {

constexpr Duration kCallTimeout = std::chrono::seconds(2);
constexpr Duration kGoodbyeTimeout = std::chrono::milliseconds(500);
constexpr Duration kFirstPause = std::chrono::milliseconds(100);
constexpr Duration kLongestPause = std::chrono::seconds(2);
constexpr Duration kLongestUpgradePause = std::chrono::seconds(30);
constexpr int kSilentLimit = 2;

Time Now() {
  return SteadyClock::Get()->Now();
}

}  // namespace

Maintainer::Maintainer(const KvClientOptions& options, KvClientMetrics* metrics)
    : options_(options), metrics_(metrics) {}

Maintainer::~Maintainer() {
  Stop();
}

void Maintainer::SetConnections(std::vector<std::shared_ptr<NodeConnection>> connections) {
  MutexLock lock(mu_);
  wanted_ = std::move(connections);
  woken_ = true;
  changed_.NotifyAll();
}

void Maintainer::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Maintainer::Adopt(std::vector<std::shared_ptr<NodeConnection>> connections) {
  std::vector<State> states;
  for (auto& c : connections) {
    const auto known = std::find_if(states_.begin(), states_.end(),
                                    [&](const State& s) { return s.connection == c; });
    if (known != states_.end()) {
      states.push_back(std::move(*known));
    } else {
      states.push_back({.connection = std::move(c)});
    }
  }
  for (State& gone : states_) {
    if (gone.connection == nullptr) continue;  // moved above
    LogInfo("kvstore node is no member any more", {{"node", gone.connection->node()}});
    gone.connection->Retire();
    for (const LinkPtr& link : gone.connection->TakeFailedLinks()) CloseLink(link, nullptr);
  }
  states_ = std::move(states);
}

void Maintainer::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  changed_.NotifyAll();
}

void Maintainer::WaitFirstRound(Time deadline) {
  MutexLock lock(mu_);
  while (!first_round_done_ && changed_.WaitUntil(mu_, deadline)) {
  }
}

void Maintainer::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (!thread_.joinable()) return;
  thread_.join();
  CallBarrier said_goodbye;
  for (State& state : states_) {
    state.connection->Retire();
    for (const LinkPtr& link : state.connection->TakeFailedLinks()) CloseLink(link, &said_goodbye);
  }
  said_goodbye.Wait();
}

void Maintainer::Run() {
  for (;;) {
    std::optional<std::vector<std::shared_ptr<NodeConnection>>> wanted;
    {
      MutexLock lock(mu_);
      wanted = std::exchange(wanted_, std::nullopt);
    }
    if (wanted.has_value()) Adopt(*std::move(wanted));
    Round(Now());
    const Time due = NextDue();
    MutexLock lock(mu_);
    first_round_done_ = !states_.empty();  // nodes may register a moment later
    changed_.NotifyAll();
    while (!stop_ && !woken_ && changed_.WaitUntil(mu_, due)) {
    }
    if (stop_) return;
    woken_ = false;
  }
}

void Maintainer::Round(Time now) {
  for (State& state : states_) {
    for (const LinkPtr& link : state.connection->TakeFailedLinks()) CloseLink(link, nullptr);
    ReleaseLatePins(state.connection.get());
  }
  KeepAliveAll(now);
  OpenAll(now);
  for (State& state : states_) {
    if (state.next_upgrade <= now) Upgrade(&state, now);
  }
}

void Maintainer::ReleaseLatePins(NodeConnection* connection) {
  for (NodeConnection::LatePins& late : connection->TakeLatePins()) {
    late.link->stub->Call(kv::ReleaseRequest{late.link->grant.session_id, std::move(late.pins),
                                             std::move(late.generations)},
                          Now() + kCallTimeout, [](const absl::StatusOr<kv::KvResponse>&) {});
  }
}

Duration Maintainer::KeepAliveEvery(const Link& link) const {
  return std::min(link.grant.session_ttl, std::min(options_.pin_ttl, link.grant.max_pin_ttl)) / 3;
}

Time Maintainer::NextDue() const {
  Time due = Now() + std::chrono::seconds(1);
  for (const State& state : states_) {
    due =
        std::min({due, state.connection->link() != nullptr ? state.next_keepalive : state.next_open,
                  state.next_upgrade});
  }
  return due;
}

void Maintainer::OpenAll(Time now) {
  std::vector<State*> open;
  for (State& state : states_) {
    if (state.connection->link() == nullptr && state.next_open <= now) open.push_back(&state);
  }
  CallBarrier barrier;
  std::vector<absl::StatusOr<kv::OpenSessionResponse>> grants(open.size(),
                                                              absl::UnknownError("no answer"));
  for (size_t i = 0; i < open.size(); ++i) {
    StartCall(open[i]->connection->stub().get(),
              kv::OpenSessionRequest{options_.name, options_.tenant},
              now + std::min(kCallTimeout, options_.connect_timeout), &barrier, &grants[i]);
  }
  barrier.Wait();
  for (size_t i = 0; i < open.size(); ++i) Opened(open[i], std::move(grants[i]));
}

void Maintainer::Opened(State* state, absl::StatusOr<kv::OpenSessionResponse> grant) {
  NodeConnection& connection = *state->connection;
  if (grant.ok()) {
    const absl::Status same = connection.CheckIncarnation(grant->incarnation);
    if (!same.ok()) {
      connection.stub()->Call(kv::CloseSessionRequest{grant->session_id}, Now() + kGoodbyeTimeout,
                              [](const absl::StatusOr<kv::KvResponse>&) {});
      grant = same;
    }
  }
  if (!grant.ok()) {
    state->pause =
        state->pause == Duration(0) ? kFirstPause : std::min(2 * state->pause, kLongestPause);
    state->next_open = Now() + state->pause;
    connection.SetDown(grant.status());
    if (!state->tried)
      LogWarn("kvstore node does not answer",
              {{"node", connection.node()}, {"why", grant.status().ToString()}});
    state->tried = true;
    return;
  }
  auto link = std::make_shared<Link>(connection.stub(), *std::move(grant));
  const absl::Status attached = Attach(connection, link.get());
  state->tried = true;
  state->pause = Duration(0);
  state->silent = 0;
  state->next_open = Now();  // if it fails later, the first attempt is made at once
  state->next_keepalive = Now() + KeepAliveEvery(*link);
  state->upgrade_pause = std::chrono::seconds(1);
  state->next_upgrade = attached.ok() ? Time::max() : Now() + state->upgrade_pause;
  LogInfo("kvstore node connected", {{"node", connection.node()}, {"lane", link->lane}});
  connection.SetUp(std::move(link));
}

absl::Status Maintainer::Attach(const NodeConnection& connection, Link* link) {
  if (options_.transport == nullptr) return absl::OkStatus();
  absl::Status status;
  const kv::OpenSessionResponse& grant = link->grant;
  if (grant.transport_name != options_.transport->name()) {
    status = absl::FailedPreconditionError(absl::StrCat("the node's transport is '",
                                                        grant.transport_name, "', ours is '",
                                                        options_.transport->name(), "'"));
  } else {
    absl::StatusOr<std::unique_ptr<Peer>> peer = options_.transport->Connect(
        grant.transport_address, Now() + std::min(kCallTimeout, options_.connect_timeout));
    status = peer.status();
    if (peer.ok()) {
      absl::StatusOr<std::unique_ptr<RemoteRegion>> arena = (*peer)->Import(grant.exported_arena);
      status = arena.status();
      if (arena.ok() && (*arena)->size() < grant.arena_bytes) {
        status = absl::FailedPreconditionError(absl::StrCat(
            "the node exports ", (*arena)->size(), " of its ", grant.arena_bytes, " bytes"));
      }
      if (status.ok()) {
        link->lane = (*peer)->lane();
        link->peer = *std::move(peer);
        link->arena = *std::move(arena);
      } else {
        (*peer)->Close();
      }
    }
  }
  if (metrics_ != nullptr) metrics_->degraded.With({connection.node()}).Set(status.ok() ? 0 : 1);
  if (!status.ok()) {
    LogError("DEGRADED: blocks of this node travel over gRPC, the transport cannot connect",
             {{"node", connection.node()}, {"why", status.ToString()}});
  }
  return status;
}

void Maintainer::Upgrade(State* state, Time now) {
  state->next_upgrade = Time::max();
  const LinkPtr old = state->connection->link();
  if (old == nullptr || !old->streams()) return;
  // The session stays; calls that run with the old link end with it.
  auto link = std::make_shared<Link>(old->stub, old->grant);
  if (!Attach(*state->connection, link.get()).ok()) {
    state->upgrade_pause = std::min(2 * state->upgrade_pause, kLongestUpgradePause);
    state->next_upgrade = now + state->upgrade_pause;
    return;
  }
  // Pins of gets that still run with the old link are renewed by their own node TTL; they are
  // short.
  LogInfo("kvstore node: transport connected after all",
          {{"node", state->connection->node()}, {"lane", link->lane}});
  state->connection->SetUp(std::move(link));
}

void Maintainer::KeepAliveAll(Time now) {
  struct Ask {
    State* state;
    LinkPtr link;
    absl::StatusOr<kv::KeepAliveResponse> alive = absl::UnknownError("no answer");
    absl::StatusOr<kv::RenewPinsResponse> renewed = absl::UnknownError("no answer");
  };
  std::vector<std::unique_ptr<Ask>> asks;
  for (State& state : states_) {
    LinkPtr link = state.connection->link();
    if (link == nullptr) continue;
    if (link->peer != nullptr && !link->peer->healthy()) {
      state.connection->Fail(link, absl::UnavailableError("the transport's connection broke"));
      continue;
    }
    const bool suspect = state.connection->TakeSuspicion();
    if (state.next_keepalive > now && !suspect) continue;
    asks.push_back(std::make_unique<Ask>(Ask{.state = &state, .link = std::move(link)}));
  }
  CallBarrier barrier;
  for (const auto& ask : asks) {
    const uint64_t session = ask->link->grant.session_id;
    const Time deadline = now + std::min<Duration>(kCallTimeout, ask->link->grant.session_ttl / 3);
    StartCall(ask->link->stub.get(), kv::KeepAliveRequest{session}, deadline, &barrier,
              &ask->alive);
    std::vector<uint64_t> pins = ask->link->pins();
    if (pins.empty()) continue;
    StartCall(ask->link->stub.get(),
              kv::RenewPinsRequest{session, std::move(pins), options_.pin_ttl}, deadline, &barrier,
              &ask->renewed);
  }
  barrier.Wait();
  for (const auto& ask : asks) {
    State& state = *ask->state;
    state.next_keepalive = Now() + KeepAliveEvery(*ask->link);
    const absl::Status status = ask->alive.status();
    state.silent = absl::IsDeadlineExceeded(status) ? state.silent + 1 : 0;
    if (status.ok()) continue;
    if (state.silent > 0 && state.silent < kSilentLimit) {
      state.next_keepalive = Now();  // once more, at once
    } else {
      state.connection->Fail(ask->link, status);
    }
  }
}

void Maintainer::CloseLink(const LinkPtr& link, CallBarrier* answered) {
  if (link->peer != nullptr) link->peer->Close();
  // Now nothing of ours writes there any more: the node may reuse at once what we had reserved.
  if (answered != nullptr) answered->Add();
  link->stub->Call(kv::CloseSessionRequest{link->grant.session_id}, Now() + kGoodbyeTimeout,
                   [answered](const absl::StatusOr<kv::KvResponse>&) {
                     if (answered != nullptr) answered->Done();
                   });
}

}  // namespace oscarkv
