#include "prefill_worker/prefill_service.h"

#include <utility>

#include "common/rpc/guard.h"
#include "common/rpc/status.h"
#include "prefill_worker/wire.h"
#include "worker/wire.h"

namespace oscarkv::prefill_worker {
namespace {

// For a call that came without a deadline.
constexpr Duration kDefaultDeadline = std::chrono::minutes(10);

// One call. Lives until OnDone, which gRPC calls after Finish; the engine's callback calls Finish
// exactly once.
class PrefillReactor final : public grpc::ServerUnaryReactor {
 public:
  PrefillReactor(PrefillEngine* engine, const absl::Status& caller, PrefillJob job,
                 v1::PrefillResponse* response)
      : engine_(engine) {
    if (!caller.ok()) {
      Finish(rpc::ToGrpc(caller));
      return;
    }
    auto id =
        engine->Submit(std::move(job), [this, response](absl::StatusOr<PrefillResult> result) {
          if (result.ok()) ToWire(*result, response);
          Finish(rpc::ToGrpc(result.status()));
        });
    id_ = id.value_or(0);
    if (!id.ok()) Finish(rpc::ToGrpc(id.status()));
  }
  // gRPC knows of this reactor only after the constructor returned, so id_ is set.
  void OnCancel() override {
    if (id_ != 0) engine_->Cancel(id_);
  }
  void OnDone() override { delete this; }

 private:
  PrefillEngine* const engine_;
  uint64_t id_ = 0;  // 0: refused
};

}  // namespace

grpc::ServerUnaryReactor* PrefillService::Prefill(grpc::CallbackServerContext* context,
                                                  const v1::PrefillRequest* request,
                                                  v1::PrefillResponse* response) {
  PrefillJob job = FromWire(*request, rpc::DeadlineOf(*context, kDefaultDeadline));
  job.trace_id = rpc::TraceIdOf(*context);
  return new PrefillReactor(
      engine_, rpc::CheckCaller(runtime_->guard.get(), *context, auth::kWorker).status(),
      std::move(job), response);
}

grpc::ServerUnaryReactor* PrefillService::GetInfo(grpc::CallbackServerContext* context,
                                                  const v1::WorkerInfoRequest*,
                                                  v1::WorkerInfo* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto caller =
      rpc::CheckCaller(runtime_->guard.get(), *context, auth::kWorker | auth::kOperator);
  if (!caller.ok()) {
    reactor->Finish(rpc::ToGrpc(caller.status()));
    return reactor;
  }
  worker::FillInfo(*runtime_, "prefill", response);
  const WorkerLoad load = engine_->load();
  response->set_running(load.running);
  response->set_waiting(load.waiting);
  response->set_draining(engine_->draining());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace oscarkv::prefill_worker
