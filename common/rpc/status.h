// Between absl::Status and grpc::Status, and deadlines. The codes have the same numbers.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/status/status.h"
#include "common/clock.h"

namespace oscarkv::rpc {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);
// Our steady time as gRPC's system time, and back. An RPC without a deadline gets `fallback` from
// now.
std::chrono::system_clock::time_point ToSystem(Time deadline);
// The id of the trace that the caller named in the metadata (common/trace.h); empty: none.
std::string TraceIdOf(const grpc::ServerContextBase& context);
Time DeadlineOf(const grpc::ServerContextBase& context, Duration fallback);

}  // namespace oscarkv::rpc
