// The active-message lane of a node: connections to other nodes (client side), sessions of other
// nodes (server side), the handshake between them. All state belongs to the progress thread;
// connections talk to it by commands. Free of the network library, which hides behind AmEngine.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"
#include "common/sha256.h"
#include "transport/access_gate.h"
#include "transport/am/client.h"
#include "transport/am/protocol.h"
#include "transport/am/server.h"
#include "transport/descriptors.h"
#include "transport/lane.h"
#include "transport/metrics.h"
#include "transport/progress_thread.h"

namespace oscarkv {

// One endpoint towards a peer. On the progress thread only.
class AmEndpoint : public AmChannel {
 public:
  // Not ok once the connection is broken.
  virtual absl::Status status() const = 0;
  // Closes by force; sends in flight end.
  virtual void Close() = 0;
  // After Close: nothing is in flight any more, the endpoint may be destroyed.
  virtual bool closed() const = 0;
  virtual std::string transports() const = 0;
};

// The network library as this lane needs it. On the progress thread only, but for address().
class AmEngine {
 public:
  using Receiver =
      std::function<void(absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload)>;
  virtual ~AmEngine() = default;
  virtual const std::string& address() const = 0;
  // Set once, before any progress.
  virtual void SetReceiver(Receiver receiver) = 0;
  virtual absl::StatusOr<std::unique_ptr<AmEndpoint>> Connect(absl::string_view address) = 0;
  virtual bool Progress() = 0;
  virtual bool Arm() = 0;
  virtual int event_fd() const = 0;
};

// Unpredictable, not 0.
uint64_t RandomId();

class AmLane final : private ProgressDriver {
 public:
  // `regions` and `metrics` outlive the lane. `secret`: what a Hello must present.
  AmLane(std::unique_ptr<AmEngine> engine, NodeSecret secret, const RegionTable* regions,
         const TransportMetrics::Lane* metrics, Duration spin);
  ~AmLane() override { Stop(); }

  // Any thread. Blocks until the peer welcomed us or the deadline passed. The lane outlives its
  // connections' use; after Stop they answer kUnavailable.
  absl::StatusOr<std::shared_ptr<LaneConnection>> Connect(const std::string& worker_address,
                                                          const NodeSecret& peer_secret,
                                                          Time deadline);
  const std::string& address() const { return engine_->address(); }

  // Any thread. From the first gate on, `secret` of the constructor is worth nothing: a Hello must
  // present one of Admit whose subject the gate welcomes. A subject that it does not welcome any
  // more is refused everything within a second or two, and its connections are closed a while later
  // (not at once: over TCP the peer would not hear why, nor see it before its deadline). Null
  // closes all connections of peers. Blocks until the former gate is out of use.
  void SetGate(AccessGate* gate);
  // A new secret of the subject. kResourceExhausted: too many.
  absl::StatusOr<NodeSecret> Admit(uint64_t subject);
  void Stop() { thread_->Stop(); }

 private:
  class Connection;
  struct Session {
    std::unique_ptr<AmEndpoint> endpoint;
    uint64_t client;
    uint64_t subject;
    bool welcomed;
    Time expelled{};  // not since then
  };
  struct Hello {
    uint64_t client;
    uint64_t subject;
    std::string address;
  };

  bool Progress() override { return engine_->Progress(); }
  bool Pump(Time now) override;
  bool Busy() const override;
  Time NextDeadline() const override;
  bool Arm() override { return engine_->Arm(); }
  int event_fd() const override { return engine_->event_fd(); }
  void BeginClose() override;
  bool Closed() const override { return closing_.empty(); }

  void OnMessage(absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload);
  bool OnHello(const AmMessage& message);
  // Whose secret it is, as far as the gate welcomes him.
  std::optional<uint64_t> SubjectOf(const NodeSecret& secret);
  bool AskGate(Time now);
  bool AcceptHellos();
  bool PumpSessions();
  bool PumpConnections(Time now);
  void CloseSession(uint64_t id);

  std::unique_ptr<AmEngine> engine_;
  const NodeSecret secret_;
  const TransportMetrics::Lane* const metrics_;

  // Of the progress thread.
  AmServer server_;
  std::unordered_map<uint64_t, Session> sessions_;
  std::vector<Hello> hellos_;
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> connections_;
  struct Closing {
    std::unique_ptr<AmEndpoint> endpoint;
    std::shared_ptr<LaneConnection> connection;  // null for sessions
  };
  std::vector<Closing> closing_;
  AccessGate* gate_ = nullptr;
  bool gated_ = false;  // there has been a gate
  Time last_gate_sweep_{};
  Time last_sweep_{};
  bool closing_all_ = false;

  // By the secret's digest: how long a look-up takes says nothing about the secrets.
  Mutex subjects_mu_;
  std::map<Sha256Digest, uint64_t> subjects_ GUARDED_BY(subjects_mu_);
  std::atomic<bool> has_subjects_{false};

  std::unique_ptr<ProgressThread> thread_;  // last: starts when the rest is there
};

}  // namespace oscarkv
