#include "gateway/grpc_worker_stub.h"

#include <grpcpp/grpcpp.h>

#include <type_traits>
#include <utility>

#include "common/rpc/call_tracker.h"
#include "common/rpc/status.h"
#include "common/trace.h"
#include "gateway/wire.h"
#include "oscarkv/v1/worker.grpc.pb.h"

namespace oscarkv::gateway {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           const rpc::ClientSecurity& security) {
  grpc::ChannelArguments args;
  // Attempts to reach a worker that restarts come at least once a second, as the polls do.
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  // gRPC takes this one as the time that an attempt may take: a loaded machine needs some.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A host that vanished or a process that is stopped. The polls' answers keep the worker's server
  // from taking the pings for abuse.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // One connection per stub: two roles that share an address in a test must not share a failure.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return security.Connect(target, args);
}

using rpc::CallTracker;
using rpc::TrackedCall;

void AddTrace(const std::string& trace_id, grpc::ClientContext* context) {
  if (!trace_id.empty()) context->AddMetadata(kTraceparent, MakeTraceparent(trace_id));
}

template <typename Request, typename Response>
struct UnaryCall final : WorkerCall {
  UnaryCall(CallTracker* tracker, Time deadline) : tracked(tracker, deadline) {}
  TrackedCall tracked;
  Request request;
  Response response;
  void Cancel() override { tracked.Cancel(); }
};

// Starts a unary call; `done` gets the status and the response.
template <typename Request, typename Response, typename Async, typename Done>
std::shared_ptr<WorkerCall> StartUnary(CallTracker* tracker, Async* async,
                                       void (Async::*method)(grpc::ClientContext*, const Request*,
                                                             Response*,
                                                             std::function<void(grpc::Status)>),
                                       Request request, const std::string& trace_id, Time deadline,
                                       Done done) {
  auto call = std::make_shared<UnaryCall<Request, Response>>(tracker, deadline);
  AddTrace(trace_id, call->tracked.context());
  call->request = std::move(request);
  // What `done` holds must be gone when the tracker lets the stub's destructor go on.
  auto callback = std::make_shared<Done>(std::move(done));
  (async->*method)(call->tracked.context(), &call->request, &call->response,
                   [call, callback](const grpc::Status& status) mutable {
                     (*callback)(rpc::FromGrpc(status), call->response);
                     callback.reset();
                     call->tracked.End();
                   });
  return call;
}

template <typename Async>
void StartGetInfo(CallTracker* tracker, Async* async, Time deadline, WorkerStub::InfoDone done) {
  StartUnary<v1::WorkerInfoRequest, v1::WorkerInfo, Async>(
      tracker, async, &Async::GetInfo, v1::WorkerInfoRequest(), /*trace_id=*/"", deadline,
      [done = std::move(done)](const absl::Status& status, const v1::WorkerInfo& info) {
        done(status.ok() ? absl::StatusOr<WorkerInfo>(wire::FromProto(info)) : status);
      });
}

class GrpcPrefillStub final : public PrefillStub {
 public:
  GrpcPrefillStub(const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security)
      : endpoint_(target),
        stub_(v1::PrefillWorker::NewStub(MakeChannel(target, *security))),
        tracker_(std::move(security)) {}

  const std::string& endpoint() const override { return endpoint_; }
  void GetInfo(Time deadline, InfoDone done) override {
    StartGetInfo(&tracker_, stub_->async(), deadline, std::move(done));
  }
  std::shared_ptr<WorkerCall> Prefill(PrefillCall call, Time deadline, PrefillDone done) override {
    using Async = std::remove_pointer_t<decltype(stub_->async())>;
    return StartUnary<v1::PrefillRequest, v1::PrefillResponse, Async>(
        &tracker_, stub_->async(), &Async::Prefill, wire::ToProto(call), call.trace_id, deadline,
        [done = std::move(done)](const absl::Status& status, const v1::PrefillResponse& response) {
          done(status.ok() ? wire::FromProto(response) : status);
        });
  }

 private:
  const std::string endpoint_;
  const std::unique_ptr<v1::PrefillWorker::Stub> stub_;
  CallTracker tracker_;
};

// Lives until its last callback and until the request lets go of it.
class DecodeStream final : public WorkerCall,
                           public grpc::ClientReadReactor<v1::DecodeResponse>,
                           public std::enable_shared_from_this<DecodeStream> {
 public:
  DecodeStream(CallTracker* tracker, v1::DecodeRequest request, const std::string& trace_id,
               Time deadline, AttentionStub::DecodeNext next, AttentionStub::DecodeDone done)
      : tracked_(tracker, deadline),
        request_(std::move(request)),
        next_(std::move(next)),
        done_(std::move(done)) {
    AddTrace(trace_id, tracked_.context());
  }

  void Start(v1::AttentionWorker::Stub* stub) {
    self_ = shared_from_this();
    stub->async()->Decode(tracked_.context(), &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void Cancel() override { tracked_.Cancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows
    next_(wire::FromProto(response_));
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    const auto self = std::move(self_);
    done_(rpc::FromGrpc(status));
    next_ = nullptr;
    done_ = nullptr;
    tracked_.End();
  }

 private:
  TrackedCall tracked_;
  const v1::DecodeRequest request_;
  v1::DecodeResponse response_;
  AttentionStub::DecodeNext next_;
  AttentionStub::DecodeDone done_;
  std::shared_ptr<DecodeStream> self_;
};

class GrpcAttentionStub final : public AttentionStub {
 public:
  GrpcAttentionStub(const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security)
      : endpoint_(target),
        stub_(v1::AttentionWorker::NewStub(MakeChannel(target, *security))),
        tracker_(std::move(security)) {}

  const std::string& endpoint() const override { return endpoint_; }
  void GetInfo(Time deadline, InfoDone done) override {
    StartGetInfo(&tracker_, stub_->async(), deadline, std::move(done));
  }
  std::shared_ptr<WorkerCall> Decode(DecodeCall call, Time deadline, DecodeNext next,
                                     DecodeDone done) override {
    auto stream = std::make_shared<DecodeStream>(&tracker_, wire::ToProto(call), call.trace_id,
                                                 deadline, std::move(next), std::move(done));
    stream->Start(stub_.get());
    return stream;
  }

 private:
  const std::string endpoint_;
  const std::unique_ptr<v1::AttentionWorker::Stub> stub_;
  CallTracker tracker_;
};

}  // namespace

std::unique_ptr<PrefillStub> MakeGrpcPrefillStub(
    const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security) {
  return std::make_unique<GrpcPrefillStub>(target, std::move(security));
}

std::unique_ptr<AttentionStub> MakeGrpcAttentionStub(
    const std::string& target, std::shared_ptr<const rpc::ClientSecurity> security) {
  return std::make_unique<GrpcAttentionStub>(target, std::move(security));
}

}  // namespace oscarkv::gateway
