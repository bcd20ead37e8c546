// One Generate request from admission to its last token: a state machine that no thread waits for.
//
//   Start -> Prepare (tokenise) -> [admission queue] -> Match (store) -> StartPrefill -> OnPrefill
//   -> StartDecode -> OnTokens... -> End
//
// An attention worker that is lost (its stream breaks, it is silent, it hands over) is replaced by
// another, which gets all tokens so far: StartDecode again. Its tokens follow those of the first,
// since a sampled token is a function of the tokens before it, the seed and the position. What the
// lost worker may still send belongs to a call that is over, and is dropped.
//
// A client's retry brings the tokens that it has: such a request begins where OnPrefill ends.
//
// With no usable worker left, a request that was under way waits for one to come back (Await), up
// to resume_wait: Tick looks and goes on with StartPrefill, StartDecode or, for a client's retry
// that found none, Match. A new request is refused at once: its client knows better what to do.
//
// Prepare and Match run on the executor, the On... steps on the stubs' threads. The steps of a
// request follow each other; only Cancel comes from outside at any time. Whoever ends the request
// first wins: End() under mu_ gives back what it holds, then tells the client (who may at once send
// the next one), then, without mu_, the worker's call is cancelled. Every later step finds ended_
// and returns.
//
// Locks: mu_ before those of the pipeline, the admission, the worker set, the executor and the
// sink. Stubs are called without it: they may call back at once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/task_pool.h"
#include "gateway/admission.h"
#include "gateway/answer_text.h"
#include "gateway/metrics.h"
#include "gateway/request_log.h"
#include "gateway/router.h"
#include "gateway/tenant_quota.h"
#include "gateway/types.h"
#include "gateway/validate.h"
#include "gateway/worker_set.h"
#include "gateway/worker_stub.h"
#include "kvstore/client/client.h"
#include "model/tokenizer.h"

namespace oscarkv::gateway {

// Where an answer goes. Called one at a time, from any thread, with the request's lock held: must
// neither block nor call into the request.
class GenerateSink {
 public:
  virtual ~GenerateSink() = default;
  virtual void Accepted(const std::string& request_id) = 0;  // first, unless refused
  virtual void Write(GenerateOutput output) = 0;
  virtual void Finish(
      const absl::Status& status) = 0;  // last, always; the sink is not used afterwards
};

struct PipelineOptions {
  AdmissionOptions admission;
  RequestLimits limits;
  ModelLimits model;                // of the gateway's own model folder
  std::vector<int32_t> eos_tokens;  // end an answer unless ignore_eos
  Duration match_timeout = std::chrono::milliseconds(100);
  int max_resumes = 3;                                 // of one request
  Duration worker_silence = std::chrono::seconds(10);  // then an attention worker counts as lost
  // How long a request that was under way waits while no worker of a role is usable; 0: it ends.
  Duration resume_wait{0};
};

// All outlive the requests.
struct PipelineDeps {
  const Tokenizer* tokenizer = nullptr;
  // The store as a tenant sees it, null without one; may block. Null function: no store.
  std::function<std::shared_ptr<KvClient>(const std::string& tenant)> store_of;
  TenantQuota* quota = nullptr;
  WorkerSet* workers = nullptr;
  const Router* router = nullptr;
  TaskPool* executor = nullptr;
  GatewayMetrics* metrics = nullptr;
  const Clock* clock = nullptr;
};

class Request : public std::enable_shared_from_this<Request> {
 public:
  struct Env {
    PipelineOptions options;
    PipelineDeps deps;
    // With the request's lock held, before the client is told: its id and its place are free.
    std::function<void(const Request*)> on_end;
    RequestLog* log = nullptr;
    // Without it; the request does not use Env afterwards.
    std::function<void()> on_gone;
  };

  // input.request_id is set. The sink lives until its Finish was called.
  Request(const Env* env, GenerateInput input, Time deadline,
          std::unique_ptr<Admission::Ticket> ticket, std::shared_ptr<TenantQuota::Share> share,
          GenerateSink* sink);

  void Start();
  // Ends the request with `reason` if it has not ended: tells the sink, cancels what runs for it on
  // workers. Never blocks.
  void Cancel(const absl::Status& reason);
  // The client went away, by itself or because its deadline passed.
  void CancelByClient();
  // Ends it with kDeadlineExceeded when its deadline has passed; resumes it elsewhere when its
  // attention worker has been silent for too long, or when one that it waits for is there. To be
  // called many times a second.
  void Tick(Time now);

  // What it did when, until now or its end.
  RequestRecord Record();

  const std::string& id() const { return input_.request_id; }
  const std::string& tenant() const { return input_.tenant; }
  uint32_t attempt() const { return input_.attempt; }

 private:
  // What an ended request leaves to be done without its lock; done on destruction, so declare it
  // before the lock.
  struct Leftovers {
    std::shared_ptr<WorkerCall> call;
    Request* ended = nullptr;
    Leftovers() = default;
    Leftovers(const Leftovers&) = delete;
    Leftovers& operator=(const Leftovers&) = delete;
    ~Leftovers();
  };

  // `worker`: that is asked in it.
  void EnterStage(const char* name, std::string worker = {}) REQUIRES(mu_);
  RequestRecord MakeRecord() const REQUIRES(mu_);
  void Prepare();
  // Takes the tokens that the client has already. `finish`: they are the whole answer.
  absl::Status TakeResumeTokens(FinishReason* finish) REQUIRES(mu_);
  bool resumed_by_client() const { return !input_.resume_tokens.empty(); }
  bool retried_by_client() const { return resumed_by_client() || input_.attempt > 1; }
  void OnSlot();
  void Match();
  void FailMatch(const absl::Status& failure);
  void StartPrefill();
  void OnPrefill(uint64_t number, absl::StatusOr<PrefillResult> result);
  void StartDecode();
  void OnTokens(uint64_t number, DecodeEvent event);
  void OnDecodeDone(uint64_t number, const absl::Status& status);
  void ExpireIfDue(Time now);
  void LeaveSilentWorker(Time now);
  void LookForAwaitedWorker(Time now);

  // Picks a usable worker of the role that did not fail this request, and leases it.
  absl::Status PickWorker(WorkerRole role) REQUIRES(mu_);
  // Keeps a call that was started for cancelling, unless it is over; cancels it if the request
  // ended meanwhile.
  void KeepCall(uint64_t number, std::shared_ptr<WorkerCall> call);
  // The call `number` is the one under way.
  bool Current(uint64_t number) const REQUIRES(mu_) { return !ended_ && number == call_number_; }
  void CallIsOver() REQUIRES(mu_);
  // A call on the role's worker failed. OK: the call is to be repeated, on another worker that was
  // picked or on one that is awaited. Else what to tell the client. `reason`: a value of the resume
  // counter's label.
  absl::Status Retry(WorkerRole role, const absl::Status& status, const char* reason) REQUIRES(mu_);
  // Whether one more worker may be tried, else why not.
  absl::Status MayRetry(WorkerRole role, const absl::Status& failure) const REQUIRES(mu_);
  // Counts and logs a call that another worker takes over. `reason`: as for Retry.
  void CountRetry(WorkerRole role, const char* reason) REQUIRES(mu_);
  // What follows when a worker is usable again.
  enum class Step { kNone, kMatch, kPrefill, kDecode };
  // No worker was to be had for `step`. True: the request waits for one, and ends with `failure`
  // when none comes. `reason`: as for Retry, null: the step was not tried before.
  bool Await(Step step, const absl::Status& failure, const char* reason) REQUIRES(mu_);
  // Whether the awaited step has its workers now.
  bool AwaitedIsThere() REQUIRES(mu_);
  std::vector<size_t>& FailedOf(WorkerRole role) REQUIRES(mu_) {
    return role == WorkerRole::kPrefill ? failed_prefill_ : failed_attention_;
  }
  // Sends tokens to the client; ends the answer when `finish` says so, or a stop string does.
  void Relay(std::vector<SampledToken> tokens, FinishReason finish, Leftovers* left) REQUIRES(mu_);
  void CompleteUsage() REQUIRES(mu_);
  void End(const absl::Status& status, Leftovers* left) REQUIRES(mu_);
  void Fail(const absl::Status& status) { Cancel(status); }
  FinishReason FirstTokenFinish(int32_t token) const REQUIRES(mu_);

  const Env* const env_;
  const GenerateInput input_;
  const Time deadline_;
  const Time arrival_;
  const int64_t arrival_unix_ms_;
  const std::vector<int32_t> stop_tokens_;  // the request's and the model's
  const std::shared_ptr<TenantQuota::Share> share_;
  GenerateSink* const sink_;

  Mutex mu_;
  bool ended_ GUARDED_BY(mu_) = false;
  std::vector<RequestPhase> phases_ GUARDED_BY(mu_);  // the last one is under way
  std::unique_ptr<Admission::Ticket> ticket_ GUARDED_BY(mu_);
  std::shared_ptr<const WorkerInfo> model_ GUARDED_BY(mu_);
  RouteRequest route_ GUARDED_BY(mu_);
  std::vector<int32_t> tokens_ GUARDED_BY(mu_);  // the prompt; then also the answer so far

  std::shared_ptr<WorkerCall> call_ GUARDED_BY(mu_);
  uint64_t call_number_ GUARDED_BY(mu_) = 0;  // of the call under way; moves on when it is over
  Time heard_ GUARDED_BY(mu_) = Time::max();  // from the attention worker; max: none is asked
  // Not to be picked again. Those of the attention role since one last sent a token: one that
  // failed before may have come back.
  std::vector<size_t> failed_prefill_ GUARDED_BY(mu_);
  std::vector<size_t> failed_attention_ GUARDED_BY(mu_);
  int prefill_failures_ GUARDED_BY(mu_) = 0;
  int attention_failures_ GUARDED_BY(mu_) = 0;  // likewise since the last token
  Step awaited_ GUARDED_BY(mu_) = Step::kNone;  // nothing else is under way then
  Time await_until_ GUARDED_BY(mu_){};
  absl::Status await_failure_ GUARDED_BY(mu_);
  const char* await_reason_ GUARDED_BY(mu_) = nullptr;
  WorkerLease prefill_ GUARDED_BY(mu_);
  WorkerLease attention_ GUARDED_BY(mu_);

  AnswerText text_ GUARDED_BY(mu_);
  Usage usage_ GUARDED_BY(mu_);
  uint32_t relayed_tokens_ GUARDED_BY(mu_) = 0;
  bool has_summary_ GUARDED_BY(mu_) = false;
  bool handed_over_ GUARDED_BY(mu_) = false;  // the worker of the call under way said so
  bool decoding_ GUARDED_BY(mu_) = false;     // a token came from an attention worker
  bool loading_ GUARDED_BY(mu_) = false;      // none from the one of the call under way
  bool resuming_ GUARDED_BY(mu_) = false;     // no token came since the last resume
  Time first_token_ GUARDED_BY(mu_){};
  Time last_token_ GUARDED_BY(mu_){};
};

}  // namespace oscarkv::gateway
