#include "tests/fakes/fake_worker_server.h"

#include <utility>

#include "gateway/wire.h"
#include "tests/fakes/fake_worker_stubs.h"

namespace oscarkv::gateway {
namespace {

grpc::ServerUnaryReactor* Info(grpc::CallbackServerContext* context, const WorkerInfo& info,
                               v1::WorkerInfo* response) {
  WorkerState state;
  state.info = info;
  *response = wire::ToProto(state).info();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace

class FakeWorkerServer::Prefiller final : public v1::PrefillWorker::CallbackService {
 public:
  explicit Prefiller(FakeWorkerServer* owner) : owner_(owner) {}
  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const v1::WorkerInfoRequest*,
                                    v1::WorkerInfo* response) override {
    WorkerInfo info = owner_->script_.info;
    info.role = "prefill";
    return Info(context, info, response);
  }
  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext* context, const v1::PrefillRequest*,
                                    v1::PrefillResponse* response) override {
    class Reactor final : public grpc::ServerUnaryReactor {
     public:
      explicit Reactor(FakeWorkerServer* owner) : owner_(owner) {}
      void OnCancel() override {
        owner_->NoteCancelled();
        Finish(grpc::Status::CANCELLED);
      }
      void OnDone() override { delete this; }

     private:
      FakeWorkerServer* const owner_;
    };
    ++owner_->prefills_;
    if (owner_->script_.hang_prefill) return new Reactor(owner_);
    response->mutable_first_token()->set_id(owner_->script_.first_token);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  FakeWorkerServer* const owner_;
};

class FakeWorkerServer::Decoder final : public v1::AttentionWorker::CallbackService {
 public:
  explicit Decoder(FakeWorkerServer* owner) : owner_(owner) {}
  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const v1::WorkerInfoRequest*,
                                    v1::WorkerInfo* response) override {
    WorkerInfo info = owner_->script_.info;
    info.role = "attention";
    return Info(context, info, response);
  }
  grpc::ServerWriteReactor<v1::DecodeResponse>* Decode(grpc::CallbackServerContext*,
                                                       const v1::DecodeRequest*) override {
    class Reactor final : public grpc::ServerWriteReactor<v1::DecodeResponse> {
     public:
      explicit Reactor(FakeWorkerServer* owner) : owner_(owner) { Next(); }
      void OnWriteDone(bool ok) override {
        if (ok) Next();
      }
      void OnCancel() override {
        if (!owner_->script_.hang_decode) return;
        owner_->NoteCancelled();
        Finish(grpc::Status::CANCELLED);
      }
      void OnDone() override { delete this; }

     private:
      void Next() {
        const FakeWorkerScript& script = owner_->script_;
        message_.Clear();
        if (sent_ < script.decode_tokens.size()) {
          message_.add_tokens()->set_id(script.decode_tokens[sent_++]);
          StartWrite(&message_);
        } else if (!script.hang_decode) {
          message_.set_finish_reason(v1::FINISH_REASON_LENGTH);
          message_.mutable_summary()->set_kv_bytes_bf16(80);
          message_.mutable_summary()->set_kv_bytes_stored(20);
          StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
        }
      }
      FakeWorkerServer* const owner_;
      v1::DecodeResponse message_;
      size_t sent_ = 0;
    };
    return new Reactor(owner_);
  }

 private:
  FakeWorkerServer* const owner_;
};

FakeWorkerServer::FakeWorkerServer(FakeWorkerScript script)
    : script_(std::move(script)),
      prefiller_(std::make_unique<Prefiller>(this)),
      decoder_(std::make_unique<Decoder>(this)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(prefiller_.get());
  builder.RegisterService(decoder_.get());
  server_ = builder.BuildAndStart();
}

FakeWorkerServer::~FakeWorkerServer() {
  Kill();
}

void FakeWorkerServer::Kill() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

void FakeWorkerServer::NoteCancelled() {
  MutexLock lock(mu_);
  ++cancelled_;
  changed_.NotifyAll();
}

bool FakeWorkerServer::WaitCancelled(int n) const {
  const Time until = SteadyClock::Get()->Now() + kTestPatience;
  MutexLock lock(mu_);
  while (cancelled_ < n && changed_.WaitUntil(mu_, until)) {
  }
  return cancelled_ >= n;
}

}  // namespace oscarkv::gateway
