#include "common/rpc/client_security.h"
#include "common/status_macros.h"
#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/cluster/etcd_membership.h"
#include "kvstore/cluster/etcd_stub.h"

namespace oscarkv {

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
  auto membership = std::make_unique<EtcdMembership>(etcd, MakeEtcdStub);
  RETURN_IF_ERROR(membership->WaitForFirst(SteadyClock::Get()->Now() + options.connect_timeout));
  return CreateKvClient(options, std::move(membership), make_stub);
}

}  // namespace oscarkv
