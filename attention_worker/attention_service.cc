#include "attention_worker/attention_service.h"

#include <utility>

#include "attention_worker/wire.h"
#include "common/mutex.h"
#include "common/rpc/guard.h"
#include "common/rpc/status.h"
#include "worker/wire.h"

namespace oscarkv::attention_worker {
namespace {

// For a call that came without a deadline.
constexpr Duration kDefaultDeadline = std::chrono::minutes(10);

// One stream. Tokens that come while a write is under way are merged into the next message, so what
// waits is bounded by the answer's length. Lives until OnDone, which gRPC calls after Finish;
// Finish comes after the engine's last event.
class DecodeReactor final : public grpc::ServerWriteReactor<v1::DecodeResponse> {
 public:
  DecodeReactor(AttentionEngine* engine, const absl::Status& caller, DecodeJob job)
      : engine_(engine) {
    if (!caller.ok()) {
      Finish(rpc::ToGrpc(caller));
      return;
    }
    auto id = engine->Submit(
        std::move(job),
        {[this](const SampledToken& token) { OnToken(token); }, [this] { OnAlive(); },
         [this](const absl::Status& status, const DecodeResult& result) { OnEnd(status, result); },
         [this](const LoadTimes& times) { OnLoaded(times); }});
    id_ = id.value_or(0);
    if (!id.ok()) Finish(rpc::ToGrpc(id.status()));
  }

  void OnWriteDone(bool ok) override {
    Update([&]() REQUIRES(mu_) {
      writing_ = false;
      if (!ok) gone_ = true;  // the client left; OnCancel tells the engine
    });
  }
  // gRPC knows of this reactor only after the constructor returned, so id_ is set.
  void OnCancel() override {
    if (id_ != 0) engine_->Cancel(id_);
  }
  void OnDone() override { delete this; }

 private:
  void OnToken(const SampledToken& token) {
    Update([&]() REQUIRES(mu_) {
      worker::ToWire(token, pending_.add_tokens());
      has_pending_ = true;
    });
  }
  void OnAlive() {
    Update([&]() REQUIRES(mu_) { has_pending_ = true; });
  }
  void OnLoaded(const LoadTimes& times) {
    Update([&]() REQUIRES(mu_) {
      ToWire(times, pending_.mutable_loaded());
      has_pending_ = true;
    });
  }
  void OnEnd(const absl::Status& status, const DecodeResult& result) {
    Update([&]() REQUIRES(mu_) {
      // UNAVAILABLE is the engine's hand-over: a summary without a finish reason.
      if (status.ok() || absl::IsUnavailable(status)) {
        ToWire(result, &pending_);
        has_pending_ = true;
      }
      ended_ = true;
      end_ = rpc::ToGrpc(status);
    });
  }

  // Changes the state, then writes or finishes as far as it allows. Finish comes after the lock was
  // given back: OnDone may delete this object at once.
  template <typename Change>
  void Update(Change change) {
    bool finish = false;
    {
      MutexLock lock(mu_);
      change();
      if (writing_) return;
      if (has_pending_ && !gone_) {
        message_.Clear();
        message_.Swap(&pending_);
        has_pending_ = false;
        writing_ = true;
        StartWrite(&message_);
      } else {
        finish = ended_;
      }
    }
    if (finish) Finish(end_);
  }

  AttentionEngine* const engine_;
  uint64_t id_ = 0;  // 0: refused
  Mutex mu_;
  v1::DecodeResponse pending_ GUARDED_BY(mu_);
  v1::DecodeResponse message_ GUARDED_BY(mu_);  // of the write under way
  bool has_pending_ GUARDED_BY(mu_) = false;
  bool writing_ GUARDED_BY(mu_) = false;
  bool gone_ GUARDED_BY(mu_) = false;
  bool ended_ GUARDED_BY(mu_) = false;
  grpc::Status end_;  // final once ended_
};

}  // namespace

grpc::ServerWriteReactor<v1::DecodeResponse>* AttentionService::Decode(
    grpc::CallbackServerContext* context, const v1::DecodeRequest* request) {
  DecodeJob job = FromWire(*request, rpc::DeadlineOf(*context, kDefaultDeadline));
  job.trace_id = rpc::TraceIdOf(*context);
  return new DecodeReactor(
      engine_, rpc::CheckCaller(runtime_->guard.get(), *context, auth::kWorker).status(),
      std::move(job));
}

grpc::ServerUnaryReactor* AttentionService::GetInfo(grpc::CallbackServerContext* context,
                                                    const v1::WorkerInfoRequest*,
                                                    v1::WorkerInfo* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto caller =
      rpc::CheckCaller(runtime_->guard.get(), *context, auth::kWorker | auth::kOperator);
  if (!caller.ok()) {
    reactor->Finish(rpc::ToGrpc(caller.status()));
    return reactor;
  }
  worker::FillInfo(*runtime_, "attention", response);
  const AttentionLoad load = engine_->load();
  response->set_running(load.running);
  response->set_waiting(load.waiting);
  response->set_draining(engine_->draining());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace oscarkv::attention_worker
