// A worker as a gRPC server of the test's process, for what only real RPCs show. Both roles in one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "gateway/types.h"
#include "oscarkv/v1/worker.grpc.pb.h"

namespace oscarkv::gateway {

// What the fake does; fixed before it starts.
struct FakeWorkerScript {
  WorkerInfo info;
  int32_t first_token = 0;             // of every Prefill
  bool hang_prefill = false;           // until cancelled
  std::vector<int32_t> decode_tokens;  // of every Decode, one message each
  bool hang_decode = false;  // after these tokens, until cancelled; else FINISH_REASON_LENGTH
};

class FakeWorkerServer {
 public:
  explicit FakeWorkerServer(FakeWorkerScript script);
  ~FakeWorkerServer();
  std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_); }
  // Ends everything at once, as a killed process does.
  void Kill();
  // Waits until so many calls that hung have been cancelled.
  bool WaitCancelled(int n) const;
  int prefills() const { return prefills_; }

 private:
  class Prefiller;
  class Decoder;
  friend class Prefiller;
  friend class Decoder;
  void NoteCancelled();

  const FakeWorkerScript script_;
  std::atomic<int> prefills_{0};
  mutable Mutex mu_;
  mutable CondVar changed_;
  int cancelled_ GUARDED_BY(mu_) = 0;
  std::unique_ptr<Prefiller> prefiller_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace oscarkv::gateway
