#include "common/rpc/client_security.h"
#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/client/kv_client.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<KvClient>> KvClient::Create(const KvClientOptions& options) {
  const auto security =
      options.security != nullptr ? options.security : rpc::ClientSecurity::None();
  return CreateKvClient(
      options, [security](const std::string& node) { return MakeGrpcStub(node, security); });
}

}  // namespace oscarkv
