// The client's one background thread: connects to nodes, keeps the sessions alive, renews the pins
// of running gets, connects again what broke.
#pragma once

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "kvstore/client/node_connection.h"

namespace oscarkv {

class Maintainer {
 public:
  // `wake` of the connections must be this object's Wake. `options` is copied; its transport
  // outlives this.
  Maintainer(const KvClientOptions& options, KvClientMetrics* metrics);
  ~Maintainer();

  // What there is to maintain from now on. The links of connections that are no longer among them
  // are closed.
  void SetConnections(std::vector<std::shared_ptr<NodeConnection>> connections);
  // Starts the thread.
  void Start();
  void Wake();
  // Until every node, and at least one, was tried once or `deadline` passed.
  void WaitFirstRound(Time deadline);
  // Ends the thread, closes every link and session. Calls that still run fail.
  void Stop();

 private:
  // Per connection, used by the thread only.
  struct State {
    std::shared_ptr<NodeConnection> connection;
    Time next_open{};
    Time next_keepalive{};
    Time next_upgrade = Time::max();  // retry of a transport that could not connect
    Duration pause{0};                // before the next attempt to open
    Duration upgrade_pause{0};
    int silent = 0;  // keepalives in a row that ran into their deadline
    bool tried = false;
  };

  void Run();
  void Adopt(std::vector<std::shared_ptr<NodeConnection>> connections);
  void Round(Time now);
  void ReleaseLatePins(NodeConnection* connection);
  void OpenAll(Time now);
  void KeepAliveAll(Time now);
  void Opened(State* state, absl::StatusOr<kv::OpenSessionResponse> grant);
  // Connects the transport to the node of `link` and sets peer, arena and lane; an error leaves the
  // link streaming.
  absl::Status Attach(const NodeConnection& connection, Link* link);
  void Upgrade(State* state, Time now);
  // `answered` may be null: then nobody waits for the node's answer.
  void CloseLink(const LinkPtr& link, CallBarrier* answered);
  Duration KeepAliveEvery(const Link& link) const;
  Time NextDue() const;

  const KvClientOptions options_;
  KvClientMetrics* const metrics_;
  std::vector<State> states_;

  Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  bool woken_ GUARDED_BY(mu_) = false;
  bool first_round_done_ GUARDED_BY(mu_) = false;
  std::optional<std::vector<std::shared_ptr<NodeConnection>>> wanted_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace oscarkv
