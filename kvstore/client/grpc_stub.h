// A node over gRPC.
#pragma once

#include <memory>
#include <string>

#include "kvstore/kv_stub.h"

namespace oscarkv {

// node: "host:port". Connects lazily and again by itself; calls to a node that is away fail at once
// with kUnavailable.
std::unique_ptr<KvStub> MakeGrpcStub(const std::string& node);

}  // namespace oscarkv
