// What a request does when a worker fails it: another worker, or waiting for one to come back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "gateway/request.h"

namespace oscarkv::gateway {
namespace {

// Failures that say nothing about the request: another worker may do better.
bool MayBeTheWorker(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kCancelled:  // not by us: a worker that is going away
    case absl::StatusCode::kUnknown:    // gRPC's "Stream removed": the connection broke
      return true;
    default:
      return false;
  }
}

}  // namespace

// A gateway that was just started again may know no worker yet, and its clients have come back.
void Request::FailMatch(const absl::Status& failure) {
  Leftovers left;
  MutexLock lock(mu_);
  if (ended_) return;
  prefill_.Release();
  if (!retried_by_client() || env_->deps.workers->routable() ||
      !Await(Step::kMatch, failure, nullptr)) {
    End(failure, &left);
  }
}

absl::Status Request::MayRetry(WorkerRole role, const absl::Status& failure) const {
  const bool prefill = role == WorkerRole::kPrefill;
  const std::string name = absl::StrCat(WorkerRoleName(role), " worker ",
                                        prefill ? usage_.prefill_worker : usage_.attention_worker);
  const int max_resumes = env_->options.max_resumes;
  if (!prefill && decoding_) {
    if (static_cast<int>(usage_.resumes) < max_resumes) return absl::OkStatus();
    return absl::Status(failure.code(),
                        absl::StrCat(name, " failed after ", usage_.generated_tokens, " tokens: ",
                                     failure.message(), "; the answer was resumed ", usage_.resumes,
                                     " times, of ", max_resumes, " that --max-resumes allows"));
  }
  if ((prefill ? prefill_failures_ : attention_failures_) <= 1) return absl::OkStatus();
  return absl::Status(failure.code(),
                      absl::StrCat(name, " (the second one tried): ", failure.message()));
}

absl::Status Request::Retry(WorkerRole role, const absl::Status& status, const char* reason) {
  WorkerSet& workers = *env_->deps.workers;
  const bool prefill = role == WorkerRole::kPrefill;
  WorkerLease& lease = prefill ? prefill_ : attention_;
  const std::string name = absl::StrCat(WorkerRoleName(role), " worker ",
                                        prefill ? usage_.prefill_worker : usage_.attention_worker);
  const absl::StatusCode code =
      absl::IsCancelled(status) ? absl::StatusCode::kUnavailable : status.code();
  if (!MayBeTheWorker(status)) {
    return absl::Status(code, absl::StrCat(name, ": ", status.message()));
  }
  workers.ReportFailure(role, lease.index(), absl::Status(code, status.message()));
  FailedOf(role).push_back(lease.index());
  ++(prefill ? prefill_failures_ : attention_failures_);
  lease.Release();
  RETURN_IF_ERROR(MayRetry(role, absl::Status(code, status.message())));
  LogWarn("a worker failed a request", {{"request", id()},
                                        {"trace", input_.trace_id},
                                        {"failed", name},
                                        {"code", absl::StatusCodeToString(code)},
                                        {"error", std::string(status.message())},
                                        {"tokens", absl::StrCat(usage_.generated_tokens)}});
  if (absl::Status picked = PickWorker(role); !picked.ok()) {
    const std::string when =
        !prefill && decoding_ ? absl::StrCat(" failed after ", usage_.generated_tokens, " tokens")
                              : "";
    const absl::Status failure(
        code, absl::StrCat(name, when, ": ", status.message(), "; ", picked.message()));
    return Await(prefill ? Step::kPrefill : Step::kDecode, failure, reason) ? absl::OkStatus()
                                                                            : failure;
  }
  CountRetry(role, reason);
  return absl::OkStatus();
}

void Request::CountRetry(WorkerRole role, const char* reason) {
  const bool prefill = role == WorkerRole::kPrefill;
  const bool resume = !prefill && decoding_;
  GatewayMetrics& metrics = *env_->deps.metrics;
  if (resume) {
    ++usage_.resumes;
    resuming_ = true;
    metrics.resumes.With({reason}).Increment();
  } else {
    metrics.retries.With({prefill ? "prefill" : "decode"}).Increment();
  }
  LogWarn(resume ? "resuming on another worker" : "trying another worker",
          {{"request", id()},
           {"trace", input_.trace_id},
           {"worker", (prefill ? env_->deps.workers->prefill(prefill_.index()).endpoint()
                               : env_->deps.workers->attention(attention_.index()).endpoint())},
           {"tokens", absl::StrCat(usage_.generated_tokens)}});
}

bool Request::Await(Step step, const absl::Status& failure, const char* reason) {
  if (env_->options.resume_wait <= Duration(0)) return false;
  const WorkerSet& workers = *env_->deps.workers;
  // A usable worker that failed this request would be all that there is, however long we waited.
  if (step != Step::kMatch) {
    const WorkerRole role = step == Step::kPrefill ? WorkerRole::kPrefill : WorkerRole::kAttention;
    for (size_t index : FailedOf(role)) {
      if (workers.Usable(role, index, model_->name_space)) return false;
    }
  }
  awaited_ = step;
  await_until_ = env_->deps.clock->Now() + env_->options.resume_wait;
  await_failure_ = failure;
  await_reason_ = reason;
  EnterStage("waiting for a worker to come back");
  LogWarn("waiting for a worker to come back", {{"request", id()},
                                                {"trace", input_.trace_id},
                                                {"reason", std::string(failure.message())},
                                                {"tokens", absl::StrCat(usage_.generated_tokens)}});
  return true;
}

bool Request::AwaitedIsThere() {
  WorkerSet& workers = *env_->deps.workers;
  if (awaited_ == Step::kMatch) return workers.routable();
  const WorkerRole role =
      awaited_ == Step::kPrefill ? WorkerRole::kPrefill : WorkerRole::kAttention;
  // One that is gone may be picked once it answers again: it is another process then, or it has
  // been cut off meanwhile.
  const std::string& name_space = model_->name_space;
  std::erase_if(FailedOf(role),
                [&](size_t index) { return !workers.Usable(role, index, name_space); });
  if (!PickWorker(role).ok()) return false;
  if (await_reason_ != nullptr) CountRetry(role, await_reason_);
  return true;
}

void Request::LookForAwaitedWorker(Time now) {
  Leftovers left;
  Step step = Step::kNone;
  {
    MutexLock lock(mu_);
    if (ended_ || awaited_ == Step::kNone) return;
    const bool there = AwaitedIsThere();
    if (!there && now < await_until_) return;
    step = std::exchange(awaited_, Step::kNone);
    env_->deps.metrics->worker_waits.With({there ? "came_back" : "gave_up"}).Increment();
    if (!there) return End(await_failure_, &left);
  }
  if (step == Step::kMatch) {
    OnSlot();
  } else if (step == Step::kPrefill) {
    StartPrefill();
  } else {
    StartDecode();
  }
}

void Request::LeaveSilentWorker(Time now) {
  const Duration silence = env_->options.worker_silence;
  std::shared_ptr<WorkerCall> silent;
  Leftovers left;
  {
    MutexLock lock(mu_);
    // Without call_ the stub has not returned yet: there is nothing to cancel so far.
    if (ended_ || call_ == nullptr || heard_ == Time::max() || now - heard_ < silence) return;
    silent = std::move(call_);
    CallIsOver();
    const absl::Status retry =
        Retry(WorkerRole::kAttention,
              absl::UnavailableError(absl::StrCat(
                  "it sent nothing for ", std::chrono::duration<double>(silence).count(), " s")),
              "silent");
    if (!retry.ok()) End(retry, &left);
  }
  silent->Cancel();  // it may go on one day: it must not go on decoding this
  if (left.ended == nullptr) StartDecode();
}

}  // namespace oscarkv::gateway
