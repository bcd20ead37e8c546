// A node over gRPC.
#pragma once

#include <memory>
#include <string>

#include "common/rpc/client_security.h"
#include "kvstore/kv_stub.h"

namespace oscarkv {

// node: "host:port". Connects lazily and again by itself; calls to a node that is away fail at once
// with kUnavailable.
std::unique_ptr<KvStub> MakeGrpcStub(
    const std::string& node,
    const std::shared_ptr<const rpc::ClientSecurity>& security = rpc::ClientSecurity::None());

}  // namespace oscarkv
