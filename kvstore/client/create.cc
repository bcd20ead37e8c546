#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/client/kv_client.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<KvClient>> KvClient::Create(const KvClientOptions& options) {
  return CreateKvClient(options, MakeGrpcStub);
}

}  // namespace oscarkv
