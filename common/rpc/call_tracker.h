// The calls of a stub under gRPC's callback API: cancelled and awaited when the stub goes.
//
// Every ClientContext holds its channel. If the last reference to a channel fell on one of gRPC's
// callback threads, gRPC 1.51 would join that thread from itself and abort. So a call's context is
// destroyed inside its last callback, before the tracker lets the stub's destructor go on: the
// stub's own reference is then the last, on the thread that destroys the stub.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <unordered_set>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/rpc/client_security.h"
#include "common/rpc/status.h"

namespace oscarkv::rpc {

class TrackedCall;

// Thread-safe. Declare it behind the stub that it tracks. Its destructor cancels what is under way
// and waits for the last callbacks: never destroy it from a callback.
class CallTracker {
 public:
  // Calls carry the token of `security`.
  explicit CallTracker(std::shared_ptr<const ClientSecurity> security = ClientSecurity::None())
      : security_(std::move(security)) {}
  ~CallTracker();
  CallTracker(const CallTracker&) = delete;
  CallTracker& operator=(const CallTracker&) = delete;

 private:
  friend class TrackedCall;
  const std::shared_ptr<const ClientSecurity> security_;
  Mutex mu_;
  CondVar none_;
  std::unordered_set<TrackedCall*> calls_ GUARDED_BY(mu_);
};

// One call's context. Thread-safe.
class TrackedCall {
 public:
  // Starts tracking.
  TrackedCall(CallTracker* tracker, Time deadline);
  ~TrackedCall() { End(); }
  TrackedCall(const TrackedCall&) = delete;
  TrackedCall& operator=(const TrackedCall&) = delete;

  // For starting the call, before its first callback.
  grpc::ClientContext* context();
  // Asks gRPC to end the call; nothing after End.
  void Cancel();
  // The last thing that the call's last callback does: what the callback's owner holds must be gone
  // by then. Destroys the context and stops tracking; later calls do nothing.
  void End();

 private:
  Mutex mu_;
  CallTracker* tracker_ GUARDED_BY(mu_);
  std::unique_ptr<grpc::ClientContext> context_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::rpc
