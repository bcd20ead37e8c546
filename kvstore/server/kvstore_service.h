// gRPC in front of a KvNode: checks and converts (kvstore/adapter.h), calls the node, converts
// back, records. The handlers run on gRPC's callback threads and never block.
#pragma once

#include <grpcpp/grpcpp.h>

#include "absl/strings/string_view.h"
#include "common/rpc/guard.h"
#include "kvstore/core/kv_node.h"
#include "kvstore/metrics.h"
#include "oscarkv/v1/kvstore.grpc.pb.h"
#include "transport/transport.h"

namespace oscarkv {

// Thread-safe.
class KvStoreService final : public v1::KvStoreService::CallbackService {
 public:
  // All outlive the service; `metrics`, `guard` (everybody may call then) and `transport` (sessions
  // get the address in the node's options) may be null.
  KvStoreService(KvNode* node, KvNodeMetrics* metrics, const rpc::Guard* guard,
                 Transport* transport)
      : node_(node), metrics_(metrics), guard_(guard), transport_(transport) {}

#define OSCARKV_HANDLER(Name)                                                                    \
  grpc::ServerUnaryReactor* Name(grpc::CallbackServerContext* context,                           \
                                 const v1::Name##Request* request, v1::Name##Response* response) \
      override;
  OSCARKV_HANDLER(OpenSession)
  OSCARKV_HANDLER(KeepAlive)
  OSCARKV_HANDLER(CloseSession)
  OSCARKV_HANDLER(MatchPrefix)
  OSCARKV_HANDLER(Exists)
  OSCARKV_HANDLER(GetStart)
  OSCARKV_HANDLER(RenewPins)
  OSCARKV_HANDLER(Release)
  OSCARKV_HANDLER(PutStart)
  OSCARKV_HANDLER(PutEnd)
  OSCARKV_HANDLER(PutRevoke)
  OSCARKV_HANDLER(Erase)
  OSCARKV_HANDLER(Stats)
  OSCARKV_HANDLER(CompareDigests)
  OSCARKV_HANDLER(CompareBlocks)
#undef OSCARKV_HANDLER
  grpc::ServerWriteReactor<v1::ReadBlocksResponse>* ReadBlocks(
      grpc::CallbackServerContext* context, const v1::ReadBlocksRequest* request) override;
  grpc::ServerReadReactor<v1::WriteBlocksRequest>* WriteBlocks(
      grpc::CallbackServerContext* context, v1::WriteBlocksResponse* response) override;

 private:
  template <typename Native, typename ProtoRequest, typename ProtoResponse>
  grpc::ServerUnaryReactor* Unary(absl::string_view call, grpc::CallbackServerContext* context,
                                  const ProtoRequest& request, ProtoResponse* response);
  // Answers, records and finishes.
  template <typename Response, typename ProtoResponse>
  void Reply(absl::string_view call, const absl::Status& status, const Response& answer,
             Time started, ProtoResponse* response, grpc::ServerUnaryReactor* reactor);
  void Record(absl::string_view call, const absl::Status& status, Time started);

  KvNode* const node_;
  KvNodeMetrics* const metrics_;
  const rpc::Guard* const guard_;
  Transport* const transport_;
};

}  // namespace oscarkv
