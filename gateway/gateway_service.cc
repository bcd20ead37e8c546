#include "gateway/gateway_service.h"

#include <deque>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "gateway/wire.h"

namespace oscarkv::gateway {
namespace {

// Tasks of Tokenize and GetStatus that may wait for the executor; Generate's are bounded by
// admission.
constexpr size_t kMaxQueuedTasks = 1024;

absl::StatusOr<std::string> ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  const grpc::Status status = buffer.Dump(&slices);
  if (!status.ok()) return rpc::FromGrpc(status);
  std::string bytes;
  bytes.reserve(buffer.Length());
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

grpc::ByteBuffer ToBuffer(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// One answer's stream. What the core writes while a write is under way is merged into the next
// message: a slow client gets fewer and larger ones, and what waits for it is bounded by the length
// of its answer. Deletes itself.
class GenerateReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                              public GenerateSink {
 public:
  void Begin(RequestPipeline* pipeline, absl::StatusOr<GenerateInput> input, Time deadline) {
    if (!input.ok()) return Finish(input.status());
    request_ = pipeline->Start(*std::move(input), deadline, this);
  }

  void Accepted(const std::string& request_id) override {
    request_id_ = request_id;
    Write(GenerateOutput());
  }
  void Write(GenerateOutput output) override {
    Update([&]() REQUIRES(mu_) {
      has_pending_ = true;
      pending_.text += output.text;
      for (SampledToken& token : output.tokens) pending_.tokens.push_back(std::move(token));
      pending_.finish = output.finish;
      pending_.usage = std::move(output.usage);
    });
  }
  void Finish(const absl::Status& status) override {
    Update([&]() REQUIRES(mu_) {
      ended_ = true;
      end_ = rpc::ToGrpc(status);
    });
  }

  void OnWriteDone(bool ok) override {
    Update([&]() REQUIRES(mu_) {
      writing_ = false;
      if (!ok) gone_ = true;  // OnCancel tells the core
    });
  }
  void OnCancel() override {
    if (request_ != nullptr) request_->CancelByClient();
  }
  void OnDone() override { delete this; }

 private:
  // Changes the state, then writes or finishes as far as it allows. gRPC's Finish comes after the
  // lock was given back: OnDone may delete this object at once.
  template <typename Change>
  void Update(Change change) {
    bool finish = false;
    {
      MutexLock lock(mu_);
      change();
      if (writing_) return;
      if (has_pending_ && !gone_) {
        buffer_ = ToBuffer(wire::ToProto(request_id_, std::exchange(pending_, GenerateOutput())));
        has_pending_ = false;
        writing_ = true;
        StartWrite(&buffer_);
      } else {
        finish = ended_;
      }
    }
    if (finish) ServerWriteReactor::Finish(end_);
  }

  std::shared_ptr<Request> request_;  // null: refused. Set before gRPC knows of this reactor
  std::string request_id_;            // set before the first write
  Mutex mu_;
  GenerateOutput pending_ GUARDED_BY(mu_);
  bool has_pending_ GUARDED_BY(mu_) = false;
  bool writing_ GUARDED_BY(mu_) = false;
  bool gone_ GUARDED_BY(mu_) = false;  // the client left
  bool ended_ GUARDED_BY(mu_) = false;
  grpc::Status end_;                         // final once ended_
  grpc::ByteBuffer buffer_ GUARDED_BY(mu_);  // of the write under way
};

// Runs `work` on the executor, then finishes the call with its status.
template <typename Work>
void FinishOn(TaskPool* executor, grpc::ServerUnaryReactor* reactor, Work work) {
  const bool posted = executor->TryPost(
      [reactor, work = std::move(work)]() mutable { reactor->Finish(rpc::ToGrpc(work())); },
      kMaxQueuedTasks);
  if (!posted) {
    reactor->Finish(rpc::ToGrpc(absl::ResourceExhaustedError(
        absl::StrCat("the gateway is busy: ", kMaxQueuedTasks, " tasks wait; retry in 1 s"))));
  }
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GatewayService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto* reactor = new GenerateReactor;
  reactor->Begin(deps_.pipeline, ReadRequest(*context, *request),
                 rpc::DeadlineOf(*context, deps_.default_deadline));
  return reactor;
}

absl::StatusOr<GenerateInput> GatewayService::ReadRequest(
    const grpc::CallbackServerContext& context, const grpc::ByteBuffer& request) const {
  ASSIGN_OR_RETURN(const auth::Identity caller,
                   rpc::CheckCaller(deps_.guard, context, auth::kClient));
  ASSIGN_OR_RETURN(const std::string bytes, ToString(request));
  ASSIGN_OR_RETURN(GenerateInput input, wire::ParseGenerateRequest(bytes));
  RETURN_IF_ERROR(SetTenant(caller, &input));
  input.trace_id = rpc::TraceIdOf(context);
  return input;
}

bool GatewayService::Admit(const grpc::CallbackServerContext& context, auth::Roles roles,
                           grpc::ServerUnaryReactor* reactor) const {
  const auto caller = rpc::CheckCaller(deps_.guard, context, roles);
  if (!caller.ok()) reactor->Finish(rpc::ToGrpc(caller.status()));
  return caller.ok();
}

grpc::ServerUnaryReactor* GatewayService::Tokenize(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admit(*context, auth::kClient, reactor)) return reactor;
  FinishOn(deps_.executor, reactor, [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string bytes, ToString(*request));
    ASSIGN_OR_RETURN(const std::string text, wire::ParseTokenizeRequest(bytes));
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                     deps_.tokenizer->Encode(text, /*add_special=*/true));
    v1::TokenizeResponse message;
    message.mutable_tokens()->Assign(tokens.begin(), tokens.end());
    *response = ToBuffer(message);
    return absl::OkStatus();
  });
  return reactor;
}

grpc::ServerUnaryReactor* GatewayService::GetModel(grpc::CallbackServerContext* context,
                                                   const v1::GetModelRequest* request,
                                                   v1::GetModelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admit(*context, auth::kClient | auth::kOperator, reactor)) return reactor;
  if (const auto model = deps_.workers->model()) {
    *response = wire::ToModelResponse(*model);
    reactor->Finish(grpc::Status::OK);
  } else {
    reactor->Finish(rpc::ToGrpc(absl::UnavailableError(
        absl::StrCat("no worker is available: ", deps_.workers->Explain()))));
  }
  return reactor;
}

grpc::ServerUnaryReactor* GatewayService::GetStatus(grpc::CallbackServerContext* context,
                                                    const v1::GetStatusRequest* request,
                                                    v1::GetStatusResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // Other tenants' traffic shows in it.
  if (!Admit(*context, auth::kOperator, reactor)) return reactor;
  FinishOn(deps_.executor, reactor, [this, response] {
    FillStatus(response);
    return absl::OkStatus();
  });
  return reactor;
}

grpc::ServerUnaryReactor* GatewayService::GetTrace(grpc::CallbackServerContext* context,
                                                   const v1::GetTraceRequest* request,
                                                   v1::GetTraceResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admit(*context, auth::kOperator, reactor)) return reactor;
  const auto record = deps_.pipeline->Find(request->id());
  if (record.ok()) *response = wire::ToProto(*record);
  reactor->Finish(rpc::ToGrpc(record.status()));
  return reactor;
}

void GatewayService::FillStatus(v1::GetStatusResponse* response) {
  if (deps_.store != nullptr) {
    const Time deadline = SteadyClock::Get()->Now() + deps_.status_timeout;
    for (const KvNodeStats& node : deps_.store->Stats(deadline)) {
      *response->add_nodes() = wire::ToProto(node);
    }
    const KvStoreView view = deps_.store->View();
    response->set_replicas(view.replicas);
    response->set_membership(view.membership);
    response->set_membership_error(view.error);
  }
  for (const WorkerState& worker : deps_.workers->List()) {
    *response->add_workers() = wire::ToProto(worker);
  }
  const GatewayMetrics& metrics = *deps_.metrics;
  response->set_running(static_cast<uint32_t>(deps_.pipeline->running()));
  response->set_waiting(static_cast<uint32_t>(deps_.pipeline->waiting()));
  response->set_requests(deps_.pipeline->requests());
  response->set_prompt_tokens(static_cast<uint64_t>(metrics.prompt_tokens.value()));
  response->set_cached_tokens(static_cast<uint64_t>(metrics.cached_tokens.value()));
  response->set_generated_tokens(static_cast<uint64_t>(metrics.generated_tokens.value()));
}

}  // namespace oscarkv::gateway
