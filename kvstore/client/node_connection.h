// A client's connection to one node: a session, and the transport's connection to its arena when
// there is one.
//
//   kDown --open--> kUp --keepalive fails, session lost, transport broken--> kDown (after a pause
//   that doubles up to a bound)
//
// What a call needs is an immutable Link, shared by the calls that use it: a reconnect makes a new
// one and never changes the one that a running get or put holds. NodeMaintainer (maintainer.h)
// drives the changes.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/mutex.h"
#include "kvstore/client/client.h"
#include "kvstore/kv_stub.h"
#include "kvstore/metrics.h"
#include "transport/transport.h"

namespace oscarkv {

// Everything but `pins` is constant after it was made.
class Link {
 public:
  Link(std::shared_ptr<KvStub> stub_in, kv::OpenSessionResponse grant_in)
      : stub(std::move(stub_in)), grant(std::move(grant_in)) {}
  // Without a peer, blocks travel over the stub's streams.
  bool streams() const { return peer == nullptr; }

  const std::shared_ptr<KvStub> stub;
  const kv::OpenSessionResponse grant;
  std::shared_ptr<Peer>
      peer;  // shared with the links that only differ in their session's other properties
  std::shared_ptr<RemoteRegion> arena;
  std::string lane = "grpc";

  // Pins that a running get holds: the maintainer renews them.
  void AddPins(const std::vector<uint64_t>& pins) const;
  void RemovePins(const std::vector<uint64_t>& pins) const;
  std::vector<uint64_t> pins() const;

 private:
  mutable Mutex mu_;
  mutable absl::flat_hash_set<uint64_t> pins_ GUARDED_BY(mu_);
};
using LinkPtr = std::shared_ptr<const Link>;

// A GetStart whose caller may stop waiting for it. Its pins are released when the answer comes
// after all.
struct PinCall {
  Mutex mu;
  bool answered GUARDED_BY(mu) = false;
  Duration took GUARDED_BY(mu){0};
  absl::StatusOr<kv::GetStartResponse> response GUARDED_BY(mu) = absl::UnknownError("no answer");
};

// What a choice between replicas looks at.
struct NodeCondition {
  LinkPtr link;  // null: down, `why` says so
  absl::Status why;
  bool settled = true;  // false: it was away not long ago and may lack what was put meanwhile
  bool trusted = true;  // false: several calls in a row failed
  double nanoseconds_per_byte = 0;  // of late reads; 0: not known
  uint64_t waiting = 0;             // bytes of reads under way
};

// Thread-safe.
//
// The circuit breaker: kFailures calls in a row that failed or were too slow make the node
// untrusted for a pause that doubles up to a bound; after it the next call decides.
class NodeConnection {
 public:
  // `metrics` may be null; `wake` is called when the maintainer has something to do.
  NodeConnection(std::string node, std::shared_ptr<KvStub> stub, KvClientMetrics* metrics,
                 std::function<void()> wake);

  const std::string& node() const { return node_; }
  const std::shared_ptr<KvStub>& stub() const { return stub_; }

  // Null while down; then *why (may be null) is kUnavailable with the node's name and the reason.
  LinkPtr link(absl::Status* why = nullptr) const;

  // The node did not do what it should: gives the link up. The maintainer closes it and makes a new
  // one. Does nothing when `link` is no longer the current one.
  void Fail(const LinkPtr& link, const absl::Status& why);
  // What the status of a call with this link says about the node: a lost session or a node that is
  // gone make it fail, a deadline makes the maintainer ask for a sign of life.
  void Judge(const LinkPtr& link, const absl::Status& status);

  NodeCondition condition(Time now) const;
  // A read of `bytes` begins; it ends with its time, or 0 when it failed.
  void ReadBegins(uint64_t bytes) { in_flight_.fetch_add(bytes, std::memory_order_relaxed); }
  void ReadEnds(uint64_t bytes, Duration time);
  // Nobody waits for this call any more.
  void AwaitLate(std::shared_ptr<PinCall> call, LinkPtr link);

  // It joined a running store: it lacks what was put before.
  void Joined() {
    MutexLock lock(mu_);
    ever_down_ = true;
  }
  // The process that the registry names; 0: any. A session with another one is refused.
  void Expect(uint64_t incarnation);
  absl::Status CheckIncarnation(uint64_t incarnation) const;

  // For the maintainer.
  struct LatePins {
    LinkPtr link;
    std::vector<uint64_t> pins, generations;
  };
  std::vector<LatePins> TakeLatePins();
  void SetUp(LinkPtr link);
  void SetDown(const absl::Status& why);  // an attempt to connect failed
  void Retire();  // the client is closing: hands its link to TakeFailedLinks
  std::vector<LinkPtr> TakeFailedLinks();
  bool TakeSuspicion() { return suspect_.exchange(false); }

 private:
  const std::string node_;
  const std::shared_ptr<KvStub> stub_;
  KvClientMetrics* const metrics_;
  const std::function<void()> wake_;
  std::atomic<bool> suspect_{false};
  mutable Mutex mu_;
  LinkPtr link_ GUARDED_BY(mu_);
  absl::Status why_down_ GUARDED_BY(mu_);
  std::vector<LinkPtr> failed_ GUARDED_BY(mu_);  // to be closed
  bool ever_up_ GUARDED_BY(mu_) = false;
  bool ever_down_ GUARDED_BY(mu_) = false;
  Time settled_from_ GUARDED_BY(mu_){};
  int failures_ GUARDED_BY(mu_) = 0;  // in a row
  Duration breaker_pause_ GUARDED_BY(mu_){0};
  Time trusted_from_ GUARDED_BY(mu_){};
  uint64_t expected_ GUARDED_BY(mu_) = 0;
  std::vector<std::pair<std::shared_ptr<PinCall>, LinkPtr>> late_ GUARDED_BY(mu_);
  std::atomic<uint64_t> in_flight_{0};           // bytes
  std::atomic<double> nanoseconds_per_byte_{0};  // smoothed; 0: not known
};

}  // namespace oscarkv
