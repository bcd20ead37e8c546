// The prefill worker on the wire. Handlers check, convert and hand over; they never block.
#pragma once

#include "oscarkv/v1/worker.grpc.pb.h"
#include "prefill_worker/prefill_engine.h"
#include "worker/runtime.h"

namespace oscarkv::prefill_worker {

class PrefillService final : public v1::PrefillWorker::CallbackService {
 public:
  // Both outlive the service.
  PrefillService(PrefillEngine* engine, const worker::WorkerRuntime* runtime)
      : engine_(engine), runtime_(runtime) {}

  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext* context,
                                    const v1::PrefillRequest* request,
                                    v1::PrefillResponse* response) override;
  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const v1::WorkerInfoRequest* request,
                                    v1::WorkerInfo* response) override;

 private:
  PrefillEngine* const engine_;
  const worker::WorkerRuntime* const runtime_;
};

}  // namespace oscarkv::prefill_worker
