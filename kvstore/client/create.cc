#include <algorithm>

#include "common/rpc/client_security.h"
#include "common/status_macros.h"
#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/client/tenant_clients.h"
#include "kvstore/cluster/etcd_membership.h"
#include "kvstore/cluster/etcd_stub.h"

namespace oscarkv {
namespace {
// A request waits for it.
constexpr Duration kTenantConnectTimeout = std::chrono::seconds(1);
}  // namespace

absl::StatusOr<std::unique_ptr<KvClient>> KvClient::Create(const KvClientOptions& options) {
  const auto security =
      options.security != nullptr ? options.security : rpc::ClientSecurity::None();
  const KvStubFactory make_stub = [security](const std::string& node) {
    return MakeGrpcStub(node, security);
  };
  if (options.etcd.empty()) return CreateKvClient(options, make_stub);
  EtcdOptions etcd;
  etcd.endpoints = options.etcd;
  etcd.prefix = options.etcd_prefix;
  auto membership = std::make_unique<EtcdMembership>(etcd, EtcdStubs(options.etcd_access));
  RETURN_IF_ERROR(membership->WaitForFirst(SteadyClock::Get()->Now() + options.connect_timeout));
  return CreateKvClient(options, std::move(membership), make_stub);
}

absl::StatusOr<std::unique_ptr<TenantClients>> TenantClients::Create(const KvClientOptions& options,
                                                                     size_t max_tenants) {
  ASSIGN_OR_RETURN(std::unique_ptr<KvClient> standard, KvClient::Create(options));
  KvClientOptions of_tenant = options;
  of_tenant.connect_timeout = std::min<Duration>(options.connect_timeout, kTenantConnectTimeout);
  return std::make_unique<TenantClients>(
      std::move(standard),
      [of_tenant](const std::string& tenant) {
        KvClientOptions own = of_tenant;
        own.tenant = tenant;
        return KvClient::Create(own);
      },
      max_tenants);
}

}  // namespace oscarkv
