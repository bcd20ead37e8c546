// The gRPC server of every role: credentials, limits, health, reflection, keepalive, shutdown.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/auth/security_options.h"

namespace oscarkv::rpc {

struct ServerSettings {
  std::string listen;  // "HOST:PORT"; port 0 picks a free one
  auth::SecurityOptions security;
  int max_receive_bytes = 4 << 20;
  int max_send_bytes = -1;  // -1: no limit
  int max_streams = 1024;   // calls at once of one connection; more wait in the client
};

class Server {
 public:
  // `service` outlives the server. Warns when others than this machine can connect without TLS or
  // without being asked who they are. kInvalidArgument: security options; kUnavailable: the address
  // cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerSettings& settings,
                                                       grpc::Service* service);
  ~Server() { Shutdown(); }
  int port() const { return port_; }
  bool stopped() const { return stopped_; }
  grpc::HealthCheckServiceInterface* health() { return server_->GetHealthCheckService(); }
  // Health says NOT_SERVING from now on; calls go on.
  void Drain();
  // Ends calls that are left after a second (they should have ended before) and waits for their
  // handlers. Idempotent.
  void Shutdown();

 private:
  Server() = default;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  bool stopped_ = false;
};

}  // namespace oscarkv::rpc
