#include "gateway/request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "gateway/prefix_match.h"
#include "gateway/usage.h"

namespace oscarkv::gateway {
namespace {

double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}

int64_t UnixMilliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::vector<int32_t> Union(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

}  // namespace

Request::Leftovers::~Leftovers() {
  if (call != nullptr) call->Cancel();
  if (ended != nullptr) ended->env_->on_gone();
}

Request::Request(const Env* env, GenerateInput input, Time deadline,
                 std::unique_ptr<Admission::Ticket> ticket,
                 std::shared_ptr<TenantQuota::Share> share, GenerateSink* sink)
    : env_(env),
      input_(std::move(input)),
      deadline_(deadline),
      arrival_(env->deps.clock->Now()),
      arrival_unix_ms_(UnixMilliseconds()),
      stop_tokens_(Union(input_.stop_tokens,
                         input_.ignore_eos ? std::vector<int32_t>{} : env->options.eos_tokens)),
      share_(std::move(share)),
      sink_(sink),
      phases_{{"tokenising the prompt"}},
      ticket_(std::move(ticket)),
      text_(env->deps.tokenizer, input_.stop, stop_tokens_) {}

void Request::EnterStage(const char* name, std::string worker) {
  // A request that fails over and over keeps the first phases and the last one.
  constexpr size_t kMaxPhases = 128;
  if (phases_.size() == kMaxPhases) phases_.pop_back();
  phases_.push_back({name, env_->deps.clock->Now() - arrival_, std::move(worker)});
}

RequestRecord Request::MakeRecord() const {
  RequestRecord record;
  record.request_id = input_.request_id;
  record.trace_id = input_.trace_id;
  record.tenant = input_.tenant;
  record.arrived_unix_ms = arrival_unix_ms_;
  record.lasted = env_->deps.clock->Now() - arrival_;
  record.ended = ended_;
  record.phases = phases_;
  record.usage = usage_;
  if (relayed_tokens_ > 0) record.usage.ttft = first_token_ - arrival_;
  return record;
}

RequestRecord Request::Record() {
  MutexLock lock(mu_);
  return MakeRecord();
}

void Request::Start() {
  {
    MutexLock lock(mu_);
    if (ended_) return;
    sink_->Accepted(input_.request_id);
  }
  env_->deps.executor->Post([self = shared_from_this()] { self->Prepare(); });
}

void Request::Prepare() {
  std::vector<int32_t> tokens = input_.prompt_tokens;
  if (tokens.empty()) {
    {
      MutexLock lock(mu_);
      if (ended_) return;
    }
    absl::StatusOr<std::vector<int32_t>> encoded =
        env_->deps.tokenizer->Encode(input_.prompt, input_.add_special);
    if (!encoded.ok()) {
      return Fail(absl::Status(encoded.status().code(),
                               absl::StrCat("prompt: ", encoded.status().message())));
    }
    tokens = *std::move(encoded);
  }
  ModelLimits model = env_->options.model;
  if (const auto workers_model = env_->deps.workers->model()) {
    model.max_context = std::min(model.max_context, workers_model->max_context);
  }
  const absl::StatusOr<uint32_t> max_tokens =
      MaxAnswerTokens(input_.max_tokens, tokens.size(), env_->options.limits, model);
  if (!max_tokens.ok()) return Fail(max_tokens.status());
  Leftovers left;
  MutexLock lock(mu_);
  if (ended_) return;
  tokens_ = std::move(tokens);
  usage_.prompt_tokens = static_cast<uint32_t>(tokens_.size());
  share_->Charge(tokens_.size());
  route_.prompt_tokens = tokens_.size();
  route_.max_tokens = *max_tokens;
  FinishReason finish = FinishReason::kNone;
  if (absl::Status status = TakeResumeTokens(&finish); !status.ok()) return End(status, &left);
  // Only the end of the answer got lost, with the text that was held back.
  if (finish != FinishReason::kNone) return Relay({}, finish, &left);
  EnterStage("waiting for other requests to end");
  // Under the lock, because Cancel destroys the ticket. OnSlot takes no lock of ours.
  ticket_->Ready([self = shared_from_this()] { self->OnSlot(); });
}

absl::Status Request::TakeResumeTokens(FinishReason* finish) {
  const std::vector<int32_t>& answer = input_.resume_tokens;
  if (answer.size() > route_.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("resume_tokens has ", answer.size(),
                                                   " ids: allowed are up to max_tokens, ",
                                                   route_.max_tokens));
  }
  for (size_t i = 0; i < answer.size(); ++i) {
    if (*finish != FinishReason::kNone) {
      return absl::InvalidArgumentError(absl::StrCat("resume_tokens[", i - 1, "] is ",
                                                     answer[i - 1],
                                                     ": it ends the answer, allowed is that only "
                                                     "for the last one of them, [",
                                                     answer.size() - 1, "]"));
    }
    text_.Push(answer[i]);  // the client has this text
    if (text_.IsStopToken(answer[i])) *finish = FinishReason::kStopToken;
    if (text_.stopped()) *finish = FinishReason::kStopString;
  }
  if (*finish == FinishReason::kNone && answer.size() == route_.max_tokens)
    *finish = FinishReason::kLength;
  tokens_.insert(tokens_.end(), answer.begin(), answer.end());
  usage_.generated_tokens = static_cast<uint32_t>(answer.size());
  decoding_ = resumed_by_client();
  return absl::OkStatus();
}

void Request::OnSlot() {
  env_->deps.executor->Post([self = shared_from_this()] { self->Match(); });
}

void Request::Match() {
  const PipelineDeps& deps = env_->deps;
  std::shared_ptr<const WorkerInfo> model = deps.workers->model();
  if (model == nullptr) {
    return FailMatch(
        absl::UnavailableError(absl::StrCat("no worker is available: ", deps.workers->Explain())));
  }
  std::vector<int32_t> prompt;
  {
    MutexLock lock(mu_);
    if (ended_) return;
    EnterStage("asking the store for the prompt's prefix");
    prompt = tokens_;
  }
  PrefixMatch match;
  if (!resumed_by_client()) {
    const Time until = std::min(deadline_, deps.clock->Now() + env_->options.match_timeout);
    const auto store = deps.store_of ? deps.store_of(input_.tenant) : nullptr;
    match = MatchPrefix(store.get(), *model, input_.tenant, prompt, until);
    if (match.failed) deps.metrics->match_failures.Increment();
  }
  absl::Status picked;
  {
    MutexLock lock(mu_);
    if (ended_) return;
    model_ = std::move(model);
    route_.cached_tokens = std::min(match.cached_tokens, route_.prompt_tokens);
    route_.affinity = match.affinity;
    // Both at once: a prompt that nobody could decode is not worth a prefill.
    if (!resumed_by_client()) picked = PickWorker(WorkerRole::kPrefill);
    if (picked.ok()) picked = PickWorker(WorkerRole::kAttention);
  }
  if (!picked.ok()) return FailMatch(picked);
  if (resumed_by_client()) {
    deps.metrics->client_retries.Increment();
    StartDecode();
  } else {
    StartPrefill();
  }
}

absl::Status Request::PickWorker(WorkerRole role) {
  const PipelineDeps& deps = env_->deps;
  const ClusterSnapshot cluster =
      deps.workers->Snapshot(model_->name_space, failed_prefill_, failed_attention_);
  const bool prefill = role == WorkerRole::kPrefill;
  const absl::StatusOr<size_t> index = prefill ? deps.router->PickPrefill(cluster, route_)
                                               : deps.router->PickAttention(cluster, route_);
  if (!index.ok()) {
    return absl::Status(index.status().code(),
                        absl::StrCat(index.status().message(), ": ", deps.workers->Explain()));
  }
  const uint64_t tokens = prefill ? route_.prompt_tokens - route_.cached_tokens
                                  : route_.prompt_tokens + route_.max_tokens;
  (prefill ? prefill_ : attention_) = deps.workers->Use(role, *index, tokens);
  return absl::OkStatus();
}

void Request::StartPrefill() {
  PrefillCall call;
  uint64_t number = 0;
  size_t worker = 0;
  {
    MutexLock lock(mu_);
    if (ended_ || awaited_ != Step::kNone) return;
    worker = prefill_.index();
    number = ++call_number_;
    usage_.prefill_worker = env_->deps.workers->prefill(worker).endpoint();
    EnterStage("in prefill", usage_.prefill_worker);
    call = {input_.request_id, tokens_, input_.sampling, input_.tenant, input_.trace_id};
  }
  KeepCall(number, env_->deps.workers->prefill(worker).Prefill(
                       std::move(call), deadline_,
                       [self = shared_from_this(), number](absl::StatusOr<PrefillResult> result) {
                         self->OnPrefill(number, std::move(result));
                       }));
}

void Request::OnPrefill(uint64_t number, absl::StatusOr<PrefillResult> result) {
  Leftovers left;
  {
    MutexLock lock(mu_);
    if (!Current(number)) return;
    CallIsOver();
    if (!result.ok()) {
      const absl::Status retry = Retry(WorkerRole::kPrefill, result.status(), "failed");
      if (!retry.ok()) return End(retry, &left);
    } else {
      GatewayMetrics& metrics = *env_->deps.metrics;
      prefill_.Release();
      phases_.back().parts = std::move(result->parts);
      usage_.cached_tokens = std::min(result->cached_tokens, usage_.prompt_tokens);
      AddTransfers(result->put, result->get, &usage_);
      metrics.prompt_tokens.Add(usage_.prompt_tokens);
      metrics.cached_tokens.Add(usage_.cached_tokens);
      metrics.blocks_not_stored.Add(result->blocks_not_stored);
      const int32_t token = result->first_token.token;
      Relay({std::move(result->first_token)}, FirstTokenFinish(token), &left);
      if (ended_) return;
    }
  }
  if (result.ok()) {
    StartDecode();
  } else {
    StartPrefill();
  }
}

FinishReason Request::FirstTokenFinish(int32_t token) const {
  if (text_.IsStopToken(token)) return FinishReason::kStopToken;
  return route_.max_tokens == 1 ? FinishReason::kLength : FinishReason::kNone;
}

void Request::StartDecode() {
  Leftovers left;
  DecodeCall call;
  uint64_t number = 0;
  size_t worker = 0;
  WorkerSet& workers = *env_->deps.workers;
  {
    MutexLock lock(mu_);
    if (ended_ || awaited_ != Step::kNone) return;
    // The worker picked before the prefill may have gone since.
    if (!workers.Usable(WorkerRole::kAttention, attention_.index(), model_->name_space)) {
      attention_.Release();
      const absl::Status picked = PickWorker(WorkerRole::kAttention);
      if (!picked.ok()) {
        if (!Await(Step::kDecode, picked, nullptr)) End(picked, &left);
        return;
      }
    }
    worker = attention_.index();
    number = ++call_number_;
    heard_ = env_->deps.clock->Now();
    has_summary_ = handed_over_ = false;
    usage_.attention_worker = workers.attention(worker).endpoint();
    loading_ = true;
    EnterStage("loading for decoding", usage_.attention_worker);
    call = {input_.request_id,
            tokens_,
            usage_.prompt_tokens,
            input_.sampling,
            static_cast<uint32_t>(route_.max_tokens),
            stop_tokens_,
            input_.tenant,
            input_.trace_id};
  }
  const auto self = shared_from_this();
  KeepCall(number,
           workers.attention(worker).Decode(
               std::move(call), deadline_,
               [self, number](DecodeEvent event) { self->OnTokens(number, std::move(event)); },
               [self, number](const absl::Status& status) { self->OnDecodeDone(number, status); }));
}

void Request::OnTokens(uint64_t number, DecodeEvent event) {
  Leftovers left;
  MutexLock lock(mu_);
  if (!Current(number)) return;
  heard_ = env_->deps.clock->Now();
  if (loading_ && !event.loaded.empty()) phases_.back().parts = std::move(event.loaded);
  if (!event.tokens.empty()) {
    if (std::exchange(loading_, false)) EnterStage("decoding", usage_.attention_worker);
    decoding_ = true;
    failed_attention_.clear();
    attention_failures_ = 0;
  }
  if (event.summary) {
    has_summary_ = true;
    handed_over_ = event.finish == FinishReason::kNone;
    usage_.recomputed_tokens += event.summary->recomputed_tokens;
    usage_.kv_bytes_bf16 = event.summary->kv_bytes_bf16;
    usage_.kv_bytes_stored = event.summary->kv_bytes_stored;
    AddTransfers(event.summary->put, event.summary->get, &usage_);
  }
  if (usage_.generated_tokens + event.tokens.size() > route_.max_tokens) {
    return End(absl::InternalError(absl::StrCat("attention worker ", usage_.attention_worker,
                                                " sent more than max_tokens ", route_.max_tokens)),
               &left);
  }
  // The worker ended the stream itself: nothing to cancel.
  if (event.finish != FinishReason::kNone) CallIsOver();
  Relay(std::move(event.tokens), event.finish, &left);
}

void Request::OnDecodeDone(uint64_t number, const absl::Status& status) {
  Leftovers left;
  {
    MutexLock lock(mu_);
    if (!Current(number)) return;
    CallIsOver();
    const absl::Status error =
        status.ok() ? absl::InternalError("the stream ended without a finish reason") : status;
    const absl::Status retry =
        Retry(WorkerRole::kAttention, error, handed_over_ ? "handed_over" : "failed");
    if (!retry.ok()) return End(retry, &left);
  }
  StartDecode();
}

void Request::KeepCall(uint64_t number, std::shared_ptr<WorkerCall> call) {
  {
    MutexLock lock(mu_);
    if (number != call_number_) return;
    if (!ended_) {
      call_ = std::move(call);
      return;
    }
  }
  call->Cancel();
}

void Request::CallIsOver() {
  ++call_number_;
  call_.reset();
  heard_ = Time::max();
}

void Request::Relay(std::vector<SampledToken> tokens, FinishReason finish, Leftovers* left) {
  GatewayMetrics& metrics = *env_->deps.metrics;
  GenerateOutput output;
  for (SampledToken& token : tokens) {
    const Time now = env_->deps.clock->Now();
    if (resuming_) metrics.resume_seconds.Observe(Seconds(now - last_token_));
    resuming_ = false;
    last_token_ = now;
    tokens_.push_back(token.token);
    ++usage_.generated_tokens;
    if (relayed_tokens_++ == 0) {
      first_token_ = last_token_;
      metrics.ttft_seconds.Observe(Seconds(first_token_ - arrival_));
    }
    metrics.generated_tokens.Increment();
    output.text += text_.Push(token.token);
    output.tokens.push_back(std::move(token));
    if (text_.stopped()) {
      finish = FinishReason::kStopString;
      break;
    }
  }
  share_->Charge(output.tokens.size());
  if (finish == FinishReason::kNone) {
    if (!output.tokens.empty()) sink_->Write(std::move(output));
    return;
  }
  output.text += text_.Finish();
  // Without max_tokens the answer may have been cut to the room in the context.
  const bool cut =
      input_.max_tokens == 0 && route_.max_tokens < env_->options.limits.default_max_tokens;
  output.finish = finish == FinishReason::kLength && cut ? FinishReason::kContext : finish;
  CompleteUsage();
  output.usage = usage_;
  sink_->Write(std::move(output));
  End(absl::OkStatus(), left);
}

void Request::CompleteUsage() {
  GatewayMetrics& metrics = *env_->deps.metrics;
  if (relayed_tokens_ > 0) usage_.ttft = first_token_ - arrival_;
  if (relayed_tokens_ > 1) {
    usage_.tpot = (last_token_ - first_token_) / (relayed_tokens_ - 1);
    metrics.tpot_seconds.Observe(Seconds(usage_.tpot));
  }
  // The last token has no K and V.
  if (!has_summary_ && model_ != nullptr) {
    EstimateKvBytes(*model_, usage_.prompt_tokens + usage_.generated_tokens - 1, &usage_);
  }
  if (usage_.kv_bytes_stored > 0) {
    metrics.compression_ratio.Observe(static_cast<double>(usage_.kv_bytes_bf16) /
                                      static_cast<double>(usage_.kv_bytes_stored));
  }
}

void Request::End(const absl::Status& status, Leftovers* left) {
  ended_ = true;
  prefill_.Release();
  attention_.Release();
  env_->on_end(this);
  share_->Leave();
  ticket_.reset();  // may start another request, that is post its next step
  env_->deps.metrics->requests.With({absl::StatusCodeToString(status.code())}).Increment();
  RequestRecord record = MakeRecord();
  record.status = status;
  env_->log->Add(std::move(record));  // first: who was told that it ended may ask for it
  sink_->Finish(status);
  LogInfo("request done", {{"request", id()},
                           {"trace", input_.trace_id},
                           {"code", absl::StatusCodeToString(status.code())},
                           {"error", std::string(status.message())},
                           {"prompt_tokens", absl::StrCat(usage_.prompt_tokens)},
                           {"cached_tokens", absl::StrCat(usage_.cached_tokens)},
                           {"tokens", absl::StrCat(usage_.generated_tokens)},
                           {"resumes", absl::StrCat(usage_.resumes)},
                           {"seconds", absl::StrCat(Seconds(env_->deps.clock->Now() - arrival_))},
                           {"prefill", usage_.prefill_worker},
                           {"attention", usage_.attention_worker}});
  left->call = std::move(call_);
  left->ended = this;
}

void Request::Cancel(const absl::Status& reason) {
  const auto self = shared_from_this();  // the pipeline may hold the last other reference
  Leftovers left;
  MutexLock lock(mu_);
  if (!ended_) End(reason, &left);
}

void Request::CancelByClient() {
  // The client's deadline and ours are the same moment seen by two timers.
  constexpr Duration kSlack = std::chrono::milliseconds(5);
  const Time now = env_->deps.clock->Now();
  if (now + kSlack >= deadline_) {
    ExpireIfDue(deadline_);
  } else {
    Cancel(absl::CancelledError("the client cancelled the request"));
  }
}

void Request::Tick(Time now) {
  ExpireIfDue(now);
  LeaveSilentWorker(now);
  LookForAwaitedWorker(now);
}

void Request::ExpireIfDue(Time now) {
  if (now < deadline_) return;
  const char* stage = nullptr;
  {
    MutexLock lock(mu_);
    stage = phases_.back().name;
  }
  Cancel(absl::DeadlineExceededError(absl::StrCat("the deadline passed while ", stage)));
}

}  // namespace oscarkv::gateway
