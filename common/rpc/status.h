// Between absl::Status and grpc::Status, and deadlines. The codes have the same numbers.
#pragma once

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "common/clock.h"

namespace oscarkv::rpc {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);
// Our steady time as gRPC's system time, and back. An RPC without a deadline gets `fallback` from
// now.
std::chrono::system_clock::time_point ToSystem(Time deadline);
Time DeadlineOf(const grpc::ServerContextBase& context, Duration fallback);

}  // namespace oscarkv::rpc
