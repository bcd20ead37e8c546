#include "common/rpc/client_security.h"

#include <grpcpp/grpcpp.h>

#include "common/auth/token.h"
#include "common/rpc/steady_waits.h"
#include "common/rpc/tls.h"
#include "common/status_macros.h"

namespace oscarkv::rpc {

absl::StatusOr<std::shared_ptr<const ClientSecurity>> ClientSecurity::Create(
    const auth::SecurityOptions& options) {
  RETURN_IF_ERROR(auth::CheckSecurityOptions(options));
  std::shared_ptr<ClientSecurity> made(new ClientSecurity);
  made->credentials_ = ChannelCredentials(options);
  made->peer_name_ = options.tls_peer_name;
  if (!options.token_file.empty()) {
    ASSIGN_OR_RETURN(made->token_, auth::TokenSource::Open(options.token_file));
  }
  return std::shared_ptr<const ClientSecurity>(std::move(made));
}

std::shared_ptr<const ClientSecurity> ClientSecurity::None() {
  std::shared_ptr<ClientSecurity> made(new ClientSecurity);
  made->credentials_ = ChannelCredentials({});
  return made;
}

std::shared_ptr<grpc::Channel> ClientSecurity::Connect(const std::string& target,
                                                       grpc::ChannelArguments args) const {
  RequireSteadyWaits();
  if (!peer_name_.empty()) args.SetSslTargetNameOverride(peer_name_);
  return grpc::CreateCustomChannel(target, credentials_, args);
}

void ClientSecurity::Authorize(grpc::ClientContext* context) const {
  // As plain metadata: gRPC's own call credentials refuse connections in plain text, which one
  // machine may use.
  if (token_ != nullptr) context->AddMetadata("authorization", token_->Header());
}

}  // namespace oscarkv::rpc
