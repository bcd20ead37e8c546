// The gateway's view of a worker: asynchronous calls with callbacks, so that no thread waits for a
// worker. Implementations: gRPC (gateway/grpc_worker_stub.h), fakes
// (tests/fakes/fake_worker_stubs.h).
//
// Threads: every method may be called from any thread and never blocks. Callbacks come from the
// stub's threads; those of one call come one at a time, the last one exactly once, cancelled or
// not, and possibly before the method that started the call returned (so callers hold no lock
// meanwhile). Destroying a stub cancels its calls and waits for their last callbacks.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gateway/types.h"

namespace oscarkv::gateway {

// A call under way. May outlive it and its stub.
class WorkerCall {
 public:
  virtual ~WorkerCall() = default;
  // Ends the call with kCancelled, unless it ended already; tells the worker at once. The last
  // callback still comes.
  virtual void Cancel() = 0;
};

class WorkerStub {
 public:
  using InfoDone = std::function<void(absl::StatusOr<WorkerInfo>)>;

  virtual ~WorkerStub() = default;
  virtual const std::string& endpoint() const = 0;  // "host:port"
  virtual void GetInfo(Time deadline, InfoDone done) = 0;
};

class PrefillStub : public WorkerStub {
 public:
  using PrefillDone = std::function<void(absl::StatusOr<PrefillResult>)>;
  virtual std::shared_ptr<WorkerCall> Prefill(PrefillCall call, Time deadline,
                                              PrefillDone done) = 0;
};

class AttentionStub : public WorkerStub {
 public:
  using DecodeNext = std::function<void(DecodeEvent)>;   // zero or more times
  using DecodeDone = std::function<void(absl::Status)>;  // then once
  virtual std::shared_ptr<WorkerCall> Decode(DecodeCall call, Time deadline, DecodeNext next,
                                             DecodeDone done) = 0;
};

}  // namespace oscarkv::gateway
