// A worker's gRPC server.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/rpc/server.h"
#include "worker/options.h"

namespace oscarkv::worker {

// `service` outlives the server. Errors as rpc::Server::Start.
absl::StatusOr<std::unique_ptr<rpc::Server>> StartServer(const WorkerOptions& options,
                                                         grpc::Service* service);

}  // namespace oscarkv::worker
