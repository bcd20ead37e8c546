// Registry over etcd's gRPC API.
#pragma once

#include "kvstore/cluster/registry.h"
#include "kvstore/etcd_access.h"

namespace oscarkv {

// Connects to endpoints, HOST:PORT, as `access` says. With a user, each connection authenticates
// itself at its first call; a token that etcd no longer knows ends the call with kUnauthenticated,
// and the next one gets a new token.
RegistryFactory EtcdStubs(const EtcdAccess& access);

}  // namespace oscarkv
