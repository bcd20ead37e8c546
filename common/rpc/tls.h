// gRPC's credentials from our options. The certificates' files are watched: what replaces them is
// used by the next handshake, connections that are there go on.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "common/auth/security_options.h"

namespace oscarkv::rpc {

// Options that CheckSecurityOptions found good. Plain text without a certificate, resp. a CA.
std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const auth::SecurityOptions& options);
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials(const auth::SecurityOptions& options);

}  // namespace oscarkv::rpc
