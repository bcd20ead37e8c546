// How this process connects to others: in plain text or with TLS, and with which token. One place
// for every gRPC client of the house.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/auth/security_options.h"

namespace grpc {
class Channel;
class ChannelArguments;
class ChannelCredentials;
class ClientContext;
}  // namespace grpc

namespace oscarkv::auth {
class TokenSource;
}

namespace oscarkv::rpc {

// Thread-safe; shared by all connections of a process, for it watches the certificates' files with
// one thread. Certificates that were replaced are used by the connections made from then on.
class ClientSecurity {
 public:
  // kInvalidArgument: as CheckSecurityOptions.
  static absl::StatusOr<std::shared_ptr<const ClientSecurity>> Create(
      const auth::SecurityOptions& options);
  // Plain text, no token.
  static std::shared_ptr<const ClientSecurity> None();

  std::shared_ptr<grpc::Channel> Connect(const std::string& target,
                                         grpc::ChannelArguments args) const;
  // Adds the token, if there is one. Before the call starts.
  void Authorize(grpc::ClientContext* context) const;

 private:
  ClientSecurity() = default;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
  std::shared_ptr<auth::TokenSource> token_;  // may be null
  std::string peer_name_;
};

}  // namespace oscarkv::rpc
