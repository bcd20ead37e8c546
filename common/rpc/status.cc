#include "common/rpc/status.h"

#include "common/trace.h"

namespace oscarkv::rpc {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::chrono::system_clock::time_point ToSystem(Time deadline) {
  if (deadline == Time::max()) return std::chrono::system_clock::time_point::max();
  const auto left = deadline - std::chrono::steady_clock::now();
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
}

std::string TraceIdOf(const grpc::ServerContextBase& context) {
  const auto found = context.client_metadata().find(kTraceparent);
  if (found == context.client_metadata().end()) return "";
  return oscarkv::TraceIdOf({found->second.data(), found->second.size()}).value_or("");
}

Time DeadlineOf(const grpc::ServerContextBase& context, Duration fallback) {
  const Time now = std::chrono::steady_clock::now();
  const auto deadline = context.deadline();
  // Without a deadline gRPC says "infinite future".
  if (deadline - std::chrono::system_clock::now() > std::chrono::hours(24 * 365))
    return now + fallback;
  return now + std::chrono::duration_cast<Duration>(deadline - std::chrono::system_clock::now());
}

}  // namespace oscarkv::rpc
