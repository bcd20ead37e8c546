// The attention worker on the wire. Handlers check, convert and hand over; they never block.
#pragma once

#include "attention_worker/attention_engine.h"
#include "oscarkv/v1/worker.grpc.pb.h"
#include "worker/runtime.h"

namespace oscarkv::attention_worker {

class AttentionService final : public v1::AttentionWorker::CallbackService {
 public:
  // Both outlive the service.
  AttentionService(AttentionEngine* engine, const worker::WorkerRuntime* runtime)
      : engine_(engine), runtime_(runtime) {}

  grpc::ServerWriteReactor<v1::DecodeResponse>* Decode(grpc::CallbackServerContext* context,
                                                       const v1::DecodeRequest* request) override;
  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const v1::WorkerInfoRequest* request,
                                    v1::WorkerInfo* response) override;

 private:
  AttentionEngine* const engine_;
  const worker::WorkerRuntime* const runtime_;
};

}  // namespace oscarkv::attention_worker
