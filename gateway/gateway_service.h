// oscarkv.v1.Gateway over the core. Generate and Tokenize take their requests as bytes, so that
// text which is not UTF-8 gets INVALID_ARGUMENT with its position (with generated parsing gRPC
// itself answers UNIMPLEMENTED).
//
// Handlers run on gRPC's threads and do not block: Generate's steps are asynchronous, the others go
// to the executor.
#pragma once

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "common/rpc/guard.h"
#include "common/task_pool.h"
#include "gateway/metrics.h"
#include "gateway/request_pipeline.h"
#include "gateway/worker_set.h"
#include "kvstore/client/client.h"
#include "oscarkv/v1/gateway.grpc.pb.h"

namespace oscarkv::gateway {

struct ServiceDeps {
  RequestPipeline* pipeline = nullptr;
  WorkerSet* workers = nullptr;
  KvClient* store = nullptr;  // may be null
  TaskPool* executor = nullptr;
  GatewayMetrics* metrics = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const rpc::Guard* guard = nullptr;  // null: everybody may call
  Duration default_deadline{};        // of a Generate without one
  Duration status_timeout{};          // for asking the store's nodes
};

using GatewayServiceBase =
    v1::Gateway::WithRawCallbackMethod_Generate<v1::Gateway::WithRawCallbackMethod_Tokenize<
        v1::Gateway::WithCallbackMethod_GetModel<v1::Gateway::WithCallbackMethod_GetStatus<
            v1::Gateway::WithCallbackMethod_GetTrace<v1::Gateway::Service>>>>>;

class GatewayService final : public GatewayServiceBase {
 public:
  explicit GatewayService(const ServiceDeps& deps) : deps_(deps) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;
  grpc::ServerUnaryReactor* GetTrace(grpc::CallbackServerContext* context,
                                     const v1::GetTraceRequest* request,
                                     v1::GetTraceResponse* response) override;

 private:
  // Who asks, for whom, and for what.
  absl::StatusOr<GenerateInput> ReadRequest(const grpc::CallbackServerContext& context,
                                            const grpc::ByteBuffer& request) const;
  // False: refused, and the call is finished.
  bool Admit(const grpc::CallbackServerContext& context, auth::Roles roles,
             grpc::ServerUnaryReactor* reactor) const;
  void FillStatus(v1::GetStatusResponse* response);

  const ServiceDeps deps_;
};

}  // namespace oscarkv::gateway
