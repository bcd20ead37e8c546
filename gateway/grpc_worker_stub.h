// Workers over gRPC.
#pragma once

#include <memory>
#include <string>

#include "common/rpc/client_security.h"
#include "gateway/worker_stub.h"

namespace oscarkv::gateway {

// target: "host:port". Connects in the background and again after failures; a call on a worker that
// cannot be reached fails with kUnavailable at once. A connection that does not answer keepalive
// pings is closed, which ends its calls with kUnavailable.
std::unique_ptr<PrefillStub> MakeGrpcPrefillStub(
    const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security);
std::unique_ptr<AttentionStub> MakeGrpcAttentionStub(
    const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security);

}  // namespace oscarkv::gateway
