#include "worker/server.h"

namespace oscarkv::worker {
namespace {
// A million tokens of five bytes each, and room.
constexpr int kMaxMessageBytes = 16 << 20;
}  // namespace

absl::StatusOr<std::unique_ptr<rpc::Server>> StartServer(const WorkerOptions& options,
                                                         grpc::Service* service) {
  rpc::ServerSettings settings;
  settings.listen = options.listen;
  settings.security = options.security;
  settings.max_receive_bytes = kMaxMessageBytes;
  return rpc::Server::Start(settings, service);
}

}  // namespace oscarkv::worker
