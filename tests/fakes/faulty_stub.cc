#include "tests/fakes/faulty_stub.h"

#include <utility>

namespace oscarkv {
namespace {

class FaultyStub final : public KvStub {
 public:
  FaultyStub(StubFaults* faults, std::unique_ptr<KvStub> inner)
      : faults_(faults), inner_(std::move(inner)) {}

  void Call(const kv::KvRequest& request, Time deadline, Done done) override {
    const StubFaults::Verdict v = faults_->Next();
    if (v.kind == StubFault::kRefuse) return done(v.status);
    if (v.kind == StubFault::kNone) return inner_->Call(request, deadline, std::move(done));
    inner_->Call(request, deadline,
                 [v, done = std::move(done)](absl::StatusOr<kv::KvResponse>) { done(v.status); });
  }
  void ReadBlocks(uint64_t session_id, std::vector<ReadTarget> targets, Time deadline,
                  ReadDone done) override {
    const StubFaults::Verdict v = faults_->Next();
    if (v.kind == StubFault::kRefuse) return done(v.status);
    if (v.kind == StubFault::kNone)
      return inner_->ReadBlocks(session_id, std::move(targets), deadline, std::move(done));
    inner_->ReadBlocks(session_id, std::move(targets), deadline,
                       [v, done = std::move(done)](absl::Status) { done(v.status); });
  }
  void WriteBlocks(uint64_t session_id, std::vector<WriteSource> sources, Time deadline,
                   CallCanceller* canceller, WriteDone done) override {
    const StubFaults::Verdict v = faults_->Next();
    if (v.kind == StubFault::kRefuse) return done(v.status);
    if (v.kind == StubFault::kNone)
      return inner_->WriteBlocks(session_id, std::move(sources), deadline, canceller,
                                 std::move(done));
    inner_->WriteBlocks(
        session_id, std::move(sources), deadline, canceller,
        [v, done = std::move(done)](absl::StatusOr<WriteErrors>) { done(v.status); });
  }

 private:
  StubFaults* const faults_;
  const std::unique_ptr<KvStub> inner_;
};

}  // namespace

void StubFaults::Inject(uint64_t at, StubFault kind, absl::Status status) {
  MutexLock lock(mu_);
  calls_ = 0;
  at_ = at;
  fault_ = {kind, std::move(status)};
  fired_ = false;
}

bool StubFaults::fired() const {
  MutexLock lock(mu_);
  return fired_;
}

StubFaults::Verdict StubFaults::Next() {
  MutexLock lock(mu_);
  if (fired_ || calls_++ != at_ || fault_.kind == StubFault::kNone) return {};
  fired_ = true;
  return fault_;
}

std::unique_ptr<KvStub> StubFaults::Wrap(std::unique_ptr<KvStub> inner) {
  return std::make_unique<FaultyStub>(this, std::move(inner));
}

}  // namespace oscarkv
