// A worker's gRPC server: listening, health, reflection, keepalive, shutdown.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace oscarkv::worker {

class RpcServer {
 public:
  // `service` outlives the server. kUnavailable: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& listen,
                                                          grpc::Service* service);
  ~RpcServer() { Shutdown(); }
  int port() const { return port_; }
  // Health says NOT_SERVING from now on; calls go on.
  void Drain();
  // Ends calls that are left (they should have ended before) and waits for their handlers.
  void Shutdown();

 private:
  RpcServer() = default;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace oscarkv::worker
