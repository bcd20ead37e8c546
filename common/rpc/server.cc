#include "common/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/rpc/steady_waits.h"
#include "common/rpc/tls.h"
#include "common/status_macros.h"

namespace oscarkv::rpc {
namespace {

// What a connection gets for its handshake, so that one that sends nothing does not stay.
constexpr int kHandshakeMs = 10'000;
// Of a call's headers, all together; larger ones end the call.
constexpr int kMaxHeaderBytes = 16 << 10;

void WarnIfOpen(const ServerSettings& s) {
  if (auth::IsLoopback(s.listen)) return;
  if (!s.security.serves_tls()) {
    LogWarn(
        "NO TLS on an address that other machines reach: prompts, answers and tokens travel in "
        "plain text. Set --tls-cert and --tls-key (docs/security.md)",
        {{"listen", s.listen}});
  }
  if (s.security.auth_file.empty() && s.security.tls_client_auth != "require") {
    LogWarn(
        "NO AUTHENTICATION on an address that other machines reach: whoever connects may do "
        "all. Set --auth-file or --tls-client-auth=require (docs/security.md)",
        {{"listen", s.listen}});
  }
}

void SetLimits(const ServerSettings& s, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(s.max_receive_bytes);
  builder->SetMaxSendMessageSize(s.max_send_bytes);
  // None of our messages is compressed; whoever sends such a one wants to see it grow.
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, s.max_streams);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
  // A second server on the same port is an error, not a partner.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients that vanished free what they hold; clients may ping as often as ours do (every 10 s).
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerSettings& settings,
                                                      grpc::Service* service) {
  RETURN_IF_ERROR(auth::CheckSecurityOptions(settings.security));
  RequireSteadyWaits();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto server = std::unique_ptr<Server>(new Server);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(settings.listen, ServerCredentials(settings.security), &server->port_);
  SetLimits(settings, &builder);
  builder.RegisterService(service);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", settings.listen,
                                               ": the address is in use or not this machine's"));
  }
  WarnIfOpen(settings);
  return server;
}

void Server::Drain() {
  if (!stopped_) health()->SetServingStatus(false);
}

void Server::Shutdown() {
  if (stopped_ || server_ == nullptr) return;
  stopped_ = true;
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  server_->Wait();
}

}  // namespace oscarkv::rpc
