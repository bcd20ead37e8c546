// Workers without servers: calls wait until the test answers them, or are answered at once by a
// function. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "gateway/worker_stub.h"

namespace oscarkv::gateway {

// How long a test waits for what must happen before it fails.
inline constexpr Duration kTestPatience = std::chrono::seconds(20);

// A call that a fake got. The test ends it; so does Cancel, as a real stub does.
class FakeCall : public WorkerCall {
 public:
  void Cancel() override;
  bool cancelled() const;
  bool ended() const;
  bool WaitCancelled() const;
  Time deadline() const { return deadline_; }

 protected:
  explicit FakeCall(Time deadline) : deadline_(deadline) {}
  // True for the first caller: the one who may call the last callback.
  bool TakeEnd();
  virtual void EndCancelled() = 0;

 private:
  const Time deadline_;
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool cancelled_ GUARDED_BY(mu_) = false;
  bool ended_ GUARDED_BY(mu_) = false;
};

class FakePrefill final : public FakeCall {
 public:
  FakePrefill(PrefillCall call, Time deadline, PrefillStub::PrefillDone done)
      : FakeCall(deadline), call(std::move(call)), done_(std::move(done)) {}
  void Reply(absl::StatusOr<PrefillResult> result);
  const PrefillCall call;

 private:
  void EndCancelled() override { std::exchange(done_, nullptr)(absl::CancelledError("fake")); }
  PrefillStub::PrefillDone done_;
};

class FakeDecode final : public FakeCall {
 public:
  FakeDecode(DecodeCall call, Time deadline, AttentionStub::DecodeNext next,
             AttentionStub::DecodeDone done)
      : FakeCall(deadline), call(std::move(call)), next_(std::move(next)), done_(std::move(done)) {}
  void Send(DecodeEvent event) { next_(std::move(event)); }
  void SendTokens(const std::vector<int32_t>& tokens, FinishReason finish = FinishReason::kNone);
  void End(const absl::Status& status);
  const DecodeCall call;

 private:
  void EndCancelled() override { std::exchange(done_, nullptr)(absl::CancelledError("fake")); }
  const AttentionStub::DecodeNext next_;
  AttentionStub::DecodeDone done_;
};

// What both fakes share: a worker's answer to GetInfo and the list of calls.
template <typename Call>
class FakeWorker {
 public:
  using InfoDone = std::function<void(absl::StatusOr<WorkerInfo>)>;
  explicit FakeWorker(WorkerInfo info) : info_(std::move(info)) {}

  void SetInfo(absl::StatusOr<WorkerInfo> info) {
    MutexLock lock(mu_);
    info_ = std::move(info);
  }
  // Later GetInfo calls neither answer nor fail before the test lets them.
  void HoldInfo() {
    MutexLock lock(mu_);
    hold_info_ = true;
  }
  void ReleaseInfo() {
    std::vector<InfoDone> held;
    absl::StatusOr<WorkerInfo> info = WorkerInfo();
    {
      MutexLock lock(mu_);
      hold_info_ = false;
      held.swap(held_info_);
      info = info_;
    }
    for (const InfoDone& done : held) done(info);
  }
  int info_calls() const {
    MutexLock lock(mu_);
    return info_calls_;
  }
  // Every later call is answered by this, inside the call that starts it.
  void AnswerWith(std::function<void(Call&)> answer) {
    MutexLock lock(mu_);
    answer_ = std::move(answer);
  }
  // The i-th call that came, waiting for it; null when it does not come.
  std::shared_ptr<Call> WaitForCall(size_t i) const {
    const Time until = SteadyClock::Get()->Now() + kTestPatience;
    MutexLock lock(mu_);
    while (calls_.size() <= i && came_.WaitUntil(mu_, until)) {
    }
    return i < calls_.size() ? calls_[i] : nullptr;
  }
  size_t num_calls() const {
    MutexLock lock(mu_);
    return calls_.size();
  }

 protected:
  void AnswerInfo(InfoDone done) {
    absl::StatusOr<WorkerInfo> info = WorkerInfo();
    {
      MutexLock lock(mu_);
      ++info_calls_;
      if (hold_info_) return held_info_.push_back(std::move(done));
      info = info_;
    }
    done(std::move(info));
  }
  void Add(std::shared_ptr<Call> call) {
    std::function<void(Call&)> answer;
    {
      MutexLock lock(mu_);
      calls_.push_back(call);
      answer = answer_;
    }
    came_.NotifyAll();
    if (answer) answer(*call);
  }

 private:
  mutable Mutex mu_;
  mutable CondVar came_;
  absl::StatusOr<WorkerInfo> info_ GUARDED_BY(mu_);
  int info_calls_ GUARDED_BY(mu_) = 0;
  bool hold_info_ GUARDED_BY(mu_) = false;
  std::vector<InfoDone> held_info_ GUARDED_BY(mu_);
  std::function<void(Call&)> answer_ GUARDED_BY(mu_);
  std::vector<std::shared_ptr<Call>> calls_ GUARDED_BY(mu_);
};

class FakePrefillStub final : public PrefillStub, public FakeWorker<FakePrefill> {
 public:
  FakePrefillStub(std::string endpoint, WorkerInfo info)
      : FakeWorker(std::move(info)), endpoint_(std::move(endpoint)) {}
  const std::string& endpoint() const override { return endpoint_; }
  void GetInfo(Time deadline, WorkerStub::InfoDone done) override { AnswerInfo(std::move(done)); }
  std::shared_ptr<WorkerCall> Prefill(PrefillCall call, Time deadline, PrefillDone done) override;

 private:
  const std::string endpoint_;
};

class FakeAttentionStub final : public AttentionStub, public FakeWorker<FakeDecode> {
 public:
  FakeAttentionStub(std::string endpoint, WorkerInfo info)
      : FakeWorker(std::move(info)), endpoint_(std::move(endpoint)) {}
  const std::string& endpoint() const override { return endpoint_; }
  void GetInfo(Time deadline, WorkerStub::InfoDone done) override { AnswerInfo(std::move(done)); }
  std::shared_ptr<WorkerCall> Decode(DecodeCall call, Time deadline, DecodeNext next,
                                     DecodeDone done) override;

 private:
  const std::string endpoint_;
};

// Info of a worker of the reference model that agrees with all others made here.
WorkerInfo FakeInfo(WorkerRole role);

}  // namespace oscarkv::gateway
