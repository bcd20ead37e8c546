// Registry over etcd's gRPC API.
#pragma once

#include <memory>
#include <string>

#include "kvstore/cluster/registry.h"

namespace oscarkv {

// `endpoint`: HOST:PORT. In plain text: keep etcd's port inside a trusted network.
std::unique_ptr<Registry> MakeEtcdStub(const std::string& endpoint);

}  // namespace oscarkv
