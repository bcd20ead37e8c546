// gRPC's callback API: no thread of ours waits for the network. Each call owns its context and
// messages and deletes itself.
#include "kvstore/client/grpc_stub.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/rpc/call_tracker.h"
#include "common/rpc/status.h"
#include "common/trace.h"
#include "kvstore/adapter.h"
#include "oscarkv/v1/kvstore.grpc.pb.h"

namespace oscarkv {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr uint64_t kStreamChunkBytes = 512 << 10;

// The node's log lines then say whose request they are about.
void NameTrace(grpc::ClientContext* context) {
  if (const std::string& trace = CurrentTrace(); !trace.empty())
    context->AddMetadata(kTraceparent, MakeTraceparent(trace));
}

class ReadStream final : public grpc::ClientReadReactor<v1::ReadBlocksResponse> {
 public:
  ReadStream(rpc::CallTracker* tracker, Time deadline, std::vector<KvStub::ReadTarget> targets,
             KvStub::ReadDone done)
      : tracked_(tracker, deadline),
        targets_(std::move(targets)),
        received_(targets_.size()),
        done_(std::move(done)) {}

  void Start(v1::KvStoreService::Stub* stub, uint64_t session_id) {
    request_.set_session_id(session_id);
    for (const KvStub::ReadTarget& t : targets_) {
      v1::ReadPiece* piece = request_.add_pieces();
      piece->set_pin_id(t.piece.pin_id);
      piece->set_offset(t.piece.offset);
      piece->set_length(t.piece.length);
    }
    stub->async()->ReadBlocks(tracked_.context(), &request_, this);
    StartRead(&chunk_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const uint32_t p = chunk_.piece();
    if (p >= targets_.size() || chunk_.offset() != received_[p] ||
        chunk_.data().size() > targets_[p].piece.length - received_[p]) {
      broken_ = true;
      tracked_.Cancel();
    } else {
      std::memcpy(targets_[p].data + received_[p], chunk_.data().data(), chunk_.data().size());
      received_[p] += chunk_.data().size();
    }
    StartRead(&chunk_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::unique_ptr<ReadStream> self(this);
    if (broken_) return done_(absl::InternalError("the node sent a chunk that was not asked for"));
    if (!status.ok()) return done_(rpc::FromGrpc(status));
    for (size_t p = 0; p < targets_.size(); ++p) {
      if (received_[p] == targets_[p].piece.length) continue;
      return done_(
          absl::UnavailableError(absl::StrCat("the stream ended after ", received_[p], " of ",
                                              targets_[p].piece.length, " bytes of a piece")));
    }
    done_(absl::OkStatus());
  }

 private:
  rpc::TrackedCall tracked_;  // first: ends when the rest is gone
  const std::vector<KvStub::ReadTarget> targets_;
  std::vector<uint64_t> received_;
  const KvStub::ReadDone done_;
  v1::ReadBlocksRequest request_;
  v1::ReadBlocksResponse chunk_;
  bool broken_ = false;
};

class WriteStream final : public grpc::ClientWriteReactor<v1::WriteBlocksRequest> {
 public:
  WriteStream(rpc::CallTracker* tracker, Time deadline, uint64_t session_id,
              std::vector<KvStub::WriteSource> sources, CallCanceller* canceller,
              KvStub::WriteDone done)
      : tracked_(tracker, deadline),
        sources_(std::move(sources)),
        canceller_(canceller),
        done_(std::move(done)) {
    chunk_.set_session_id(session_id);
  }

  void Start(v1::KvStoreService::Stub* stub) {
    stub->async()->WriteBlocks(tracked_.context(), &response_, this);
    canceller_->Arm([this] { tracked_.Cancel(); });
    Next();
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok) Next();  // else the stream broke: OnDone says why
  }

  void OnDone(const grpc::Status& status) override {
    const std::unique_ptr<WriteStream> self(this);
    canceller_->Disarm();
    if (!status.ok()) return done_(rpc::FromGrpc(status));
    KvStub::WriteErrors errors;
    for (const v1::WriteError& e : response_.errors()) {
      BlockKey key;
      if (!KeyFromProto(e.key(), &key).ok() || e.code() == 0 || e.code() > 16) continue;
      errors.emplace_back(key, absl::Status(static_cast<absl::StatusCode>(e.code()), e.message()));
    }
    done_(std::move(errors));
  }

 private:
  void Next() {
    while (source_ < sources_.size() && at_ == sources_[source_].data.size()) {
      ++source_;
      at_ = 0;
    }
    if (source_ == sources_.size()) return StartWritesDone();
    const KvStub::WriteSource& s = sources_[source_];
    const uint64_t length = std::min<uint64_t>(kStreamChunkBytes, s.data.size() - at_);
    KeyToProto(s.chunk.key, chunk_.mutable_key());
    chunk_.set_generation(s.chunk.generation);
    chunk_.set_offset(s.chunk.offset + at_);
    chunk_.set_data(s.data.data() + at_, length);
    at_ += length;
    StartWrite(&chunk_);
  }

  rpc::TrackedCall tracked_;  // first: ends when the rest is gone
  const std::vector<KvStub::WriteSource> sources_;
  CallCanceller* const canceller_;
  const KvStub::WriteDone done_;
  size_t source_ = 0;
  uint64_t at_ = 0;  // in the source
  v1::WriteBlocksRequest chunk_;
  v1::WriteBlocksResponse response_;
};

class GrpcStub final : public KvStub {
 public:
  GrpcStub(const std::string& node, const std::shared_ptr<const rpc::ClientSecurity>& security)
      : tracker_(security) {
    grpc::ChannelArguments args;
    args.SetMaxReceiveMessageSize(kMaxMessageBytes);
    args.SetMaxSendMessageSize(kMaxMessageBytes);
    // A node that comes back is found soon: our own maintainer paces the attempts, and the pause
    // between gRPC's own is bounded by MAX. MIN is no pause: it is what an attempt gets for the
    // handshake before it is given up, on a loaded machine more than a moment.
    args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
    args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 2'000);
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::KvStoreService::NewStub(security->Connect(node, args));
  }

  void Call(const kv::KvRequest& request, Time deadline, Done done) override {
    std::visit([&](const auto& typed) { Send(typed, deadline, std::move(done)); }, request);
  }
  void ReadBlocks(uint64_t session_id, std::vector<ReadTarget> targets, Time deadline,
                  ReadDone done) override {
    (new ReadStream(&tracker_, deadline, std::move(targets), std::move(done)))
        ->Start(stub_.get(), session_id);
  }
  void WriteBlocks(uint64_t session_id, std::vector<WriteSource> sources, Time deadline,
                   CallCanceller* canceller, WriteDone done) override {
    (new WriteStream(&tracker_, deadline, session_id, std::move(sources), canceller,
                     std::move(done)))
        ->Start(stub_.get());
  }

 private:
  template <typename Native, typename ProtoRequest, typename ProtoResponse, typename Method>
  void Unary(const Native& request, Time deadline, Done done, Method method) {
    struct State {
      State(rpc::CallTracker* tracker, Time deadline, Done d)
          : tracked(tracker, deadline), done(std::move(d)) {}
      rpc::TrackedCall tracked;
      ProtoRequest request;
      ProtoResponse response;
      Done done;
    };
    auto state = std::make_shared<State>(&tracker_, deadline, std::move(done));
    ToProto(request, &state->request);
    NameTrace(state->tracked.context());
    method(state->tracked.context(), &state->request, &state->response,
           [state](const grpc::Status& status) {
             state->done(Answer<Native>(status, state->response));
             state->done = nullptr;  // with all that it holds, before the stub may go
             state->tracked.End();
           });
  }

  template <typename Native, typename ProtoResponse>
  static absl::StatusOr<kv::KvResponse> Answer(const grpc::Status& status,
                                               const ProtoResponse& proto) {
    if (!status.ok()) return rpc::FromGrpc(status);
    typename Native::Response response;
    const absl::Status checked = FromProto(proto, &response);
    if (!checked.ok()) {
      return absl::InternalError(absl::StrCat("answer of the node: ", checked.message()));
    }
    return kv::KvResponse(std::move(response));
  }

#define OSCARKV_RPC(Name)                                                                        \
  void Send(const kv::Name##Request& request, Time deadline, Done done) {                        \
    Unary<kv::Name##Request, v1::Name##Request, v1::Name##Response>(                             \
        request, deadline, std::move(done), [this](auto* context, auto* in, auto* out, auto f) { \
          stub_->async()->Name(context, in, out, std::move(f));                                  \
        });                                                                                      \
  }
  OSCARKV_RPC(OpenSession)
  OSCARKV_RPC(KeepAlive)
  OSCARKV_RPC(CloseSession)
  OSCARKV_RPC(MatchPrefix)
  OSCARKV_RPC(Exists)
  OSCARKV_RPC(GetStart)
  OSCARKV_RPC(RenewPins)
  OSCARKV_RPC(Release)
  OSCARKV_RPC(PutStart)
  OSCARKV_RPC(PutEnd)
  OSCARKV_RPC(PutRevoke)
  OSCARKV_RPC(Erase)
  OSCARKV_RPC(Stats)
  OSCARKV_RPC(CompareDigests)
  OSCARKV_RPC(CompareBlocks)
#undef OSCARKV_RPC

  std::unique_ptr<v1::KvStoreService::Stub> stub_;
  rpc::CallTracker tracker_;  // behind the stub: gone before it
};

}  // namespace

std::unique_ptr<KvStub> MakeGrpcStub(const std::string& node,
                                     const std::shared_ptr<const rpc::ClientSecurity>& security) {
  return std::make_unique<GrpcStub>(node, security);
}

}  // namespace oscarkv
