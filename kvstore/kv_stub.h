// One node as a client reaches it: over gRPC (client/grpc_stub.h), or in process
// (core/local_stub.h).
//
// Asynchronous, because a client asks several nodes at once. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "kvstore/api.h"

namespace oscarkv {

// Ends a call early, from any thread and at any time. Outlives the call.
class CallCanceller {
 public:
  void Cancel() {
    MutexLock lock(mu_);
    cancelled_ = true;
    if (hook_) hook_();
  }
  // For the stub: how to cancel the call, until Disarm. The hook must not call back.
  void Arm(std::function<void()> hook) {
    MutexLock lock(mu_);
    hook_ = std::move(hook);
    if (cancelled_) hook_();
  }
  void Disarm() {
    MutexLock lock(mu_);
    hook_ = nullptr;
  }

 private:
  Mutex mu_;
  bool cancelled_ GUARDED_BY(mu_) = false;
  std::function<void()> hook_ GUARDED_BY(mu_);
};

class KvStub {
 public:
  virtual ~KvStub() = default;

  // Sends a request. `done` runs exactly once, at the latest shortly after the deadline, on any
  // thread, maybe before Call returns; it must not block and must not destroy the stub. The
  // response holds the alternative that belongs to the request.
  using Done = std::function<void(absl::StatusOr<kv::KvResponse>)>;
  virtual void Call(const kv::KvRequest& request, Time deadline, Done done) = 0;

  // The streaming data path. The memory must stay until `done` ran, and is not touched after that.
  struct ReadTarget {
    kv::ReadPiece piece;
    uint8_t* data = nullptr;
  };
  using ReadDone = std::function<void(absl::Status)>;
  virtual void ReadBlocks(uint64_t session_id, std::vector<ReadTarget> targets, Time deadline,
                          ReadDone done) = 0;

  struct WriteSource {
    kv::WriteChunk chunk;
    absl::Span<const uint8_t> data;
  };
  // What the node refused, by block.
  using WriteErrors = std::vector<std::pair<BlockKey, absl::Status>>;
  using WriteDone = std::function<void(absl::StatusOr<WriteErrors>)>;
  virtual void WriteBlocks(uint64_t session_id, std::vector<WriteSource> sources, Time deadline,
                           CallCanceller* canceller, WriteDone done) = 0;
};

using KvStubFactory = std::function<std::unique_ptr<KvStub>(const std::string& node)>;

// Waits for a number of callbacks. Destroy it only after Wait returned.
class CallBarrier {
 public:
  void Add() {
    MutexLock lock(mu_);
    ++open_;
  }
  void Done() {
    MutexLock lock(mu_);
    if (--open_ == 0) ended_.NotifyAll();  // under the lock: the waiter may destroy this at once
  }
  void Wait() {
    MutexLock lock(mu_);
    while (open_ > 0) ended_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar ended_;
  size_t open_ GUARDED_BY(mu_) = 0;
};

// Starts a typed call whose result goes to *out before `barrier` counts it as done. Both must
// outlive barrier->Wait().
template <typename Request>
void StartCall(KvStub* stub, Request request, Time deadline, CallBarrier* barrier,
               absl::StatusOr<typename Request::Response>* out) {
  barrier->Add();
  stub->Call(kv::KvRequest(std::move(request)), deadline,
             [barrier, out](absl::StatusOr<kv::KvResponse> response) {
               if (response.ok()) {
                 *out = std::get<typename Request::Response>(std::move(*response));
               } else {
                 *out = response.status();
               }
               barrier->Done();
             });
}

// Sends and waits.
template <typename Request>
absl::StatusOr<typename Request::Response> CallAndWait(KvStub* stub, Request request,
                                                       Time deadline) {
  CallBarrier barrier;
  absl::StatusOr<typename Request::Response> response = absl::UnknownError("no answer");
  StartCall(stub, std::move(request), deadline, &barrier, &response);
  barrier.Wait();
  return response;
}

}  // namespace oscarkv
