#include "gateway/worker_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv::gateway {
namespace {

std::string Name(const WorkerState& w) {
  return absl::StrCat(WorkerRoleName(w.role), " worker ", w.endpoint);
}

// One fact that all workers must share.
struct Fact {
  const char* name;
  std::string (*value)(const WorkerInfo&);
};

// Fingerprints first: a difference there is the usual cause of one in the namespace.
const Fact kFacts[] = {
    {"model fingerprint",
     [](const WorkerInfo& i) { return absl::BytesToHexString(i.model_fingerprint); }},
    {"codec fingerprint",
     [](const WorkerInfo& i) { return absl::BytesToHexString(i.codec_fingerprint); }},
    {"prefill history", [](const WorkerInfo& i) { return i.prefill_history; }},
    {"namespace", [](const WorkerInfo& i) { return absl::BytesToHexString(i.name_space); }},
    {"vocabulary size", [](const WorkerInfo& i) { return absl::StrCat(i.vocab_size); }},
};

bool SameIdentity(const WorkerInfo& a, const WorkerInfo& b) {
  return std::all_of(std::begin(kFacts), std::end(kFacts),
                     [&](const Fact& f) { return f.value(a) == f.value(b); });
}

// What a worker says that is wrong whatever the others say.
absl::Status CheckAlone(const WorkerState& w, uint32_t vocab_size) {
  if (w.info.role != WorkerRoleName(w.role)) {
    return absl::FailedPreconditionError(absl::StrCat(Name(w), " says its role is \"", w.info.role,
                                                      "\", it is listed as \"",
                                                      WorkerRoleName(w.role), "\""));
  }
  if (w.info.name_space.size() != sizeof(Sha256Digest)) {
    return absl::FailedPreconditionError(absl::StrCat(Name(w), " says a namespace of ",
                                                      w.info.name_space.size(), " bytes, expected ",
                                                      sizeof(Sha256Digest)));
  }
  if (w.info.max_context == 0) {
    return absl::FailedPreconditionError(absl::StrCat(Name(w), " says a context of 0 tokens"));
  }
  if (vocab_size != 0 && w.info.vocab_size != vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat(Name(w), " runs model \"", w.info.model, "\" with a vocabulary of ",
                     w.info.vocab_size, " tokens, the gateway's model folder has ", vocab_size));
  }
  return absl::OkStatus();
}

absl::Status CheckAgainst(const WorkerState& w, const WorkerState& reference) {
  for (const Fact& fact : kFacts) {
    const std::string a = fact.value(w.info), b = fact.value(reference.info);
    if (a == b) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        Name(w), " has ", fact.name, " ", a, " (model ", w.info.model, ", profile ", w.info.profile,
        "), but ", Name(reference), " and those that agree with it have ", b, " (model ",
        reference.info.model, ", profile ", reference.info.profile, ")"));
  }
  return absl::OkStatus();
}

}  // namespace

Agreement Agree(absl::Span<const WorkerState> workers, uint32_t vocab_size) {
  Agreement result;
  std::vector<size_t> sound;
  for (size_t i = 0; i < workers.size(); ++i) {
    const WorkerState& w = workers[i];
    result.verdicts.push_back(absl::IsUnavailable(w.status) ? w.status : CheckAlone(w, vocab_size));
    if (result.verdicts.back().ok()) sound.push_back(i);
  }
  size_t most = 0;
  for (size_t i : sound) {
    const size_t votes = std::count_if(sound.begin(), sound.end(), [&](size_t j) {
      return SameIdentity(workers[i].info, workers[j].info);
    });
    if (votes > most) {
      most = votes;
      result.reference = static_cast<int>(i);
    }
  }
  for (size_t i : sound) {
    result.verdicts[i] = CheckAgainst(workers[i], workers[result.reference]);
  }
  return result;
}

WorkerLease& WorkerLease::operator=(WorkerLease&& other) noexcept {
  if (this != &other) {
    Release();
    set_ = std::exchange(other.set_, nullptr);
    role_ = other.role_;
    index_ = other.index_;
    tokens_ = other.tokens_;
  }
  return *this;
}

void WorkerLease::Release() {
  if (WorkerSet* set = std::exchange(set_, nullptr)) set->Release(role_, index_, tokens_);
}

WorkerSet::WorkerSet(const WorkerSetOptions& options,
                     std::vector<std::unique_ptr<PrefillStub>> prefill,
                     std::vector<std::unique_ptr<AttentionStub>> attention, GatewayMetrics* metrics,
                     const Clock* clock)
    : options_(options),
      metrics_(metrics),
      clock_(clock),
      prefill_(std::move(prefill)),
      attention_(std::move(attention)) {
  const auto add = [this](WorkerRole role, WorkerStub* stub) {
    Worker w;
    w.stub = stub;
    w.state.role = role;
    w.state.endpoint = stub->endpoint();
    w.state.status = absl::UnavailableError("has not answered yet");
    metrics_->worker_up.With({WorkerRoleName(role), stub->endpoint()}).Set(0);
    metrics_->worker_failures.With({WorkerRoleName(role), stub->endpoint()});  // as in metrics.cc
    MutexLock lock(mu_);
    workers_.push_back(std::move(w));
  };
  for (const auto& stub : prefill_) add(WorkerRole::kPrefill, stub.get());
  for (const auto& stub : attention_) add(WorkerRole::kAttention, stub.get());
}

WorkerSet::~WorkerSet() {
  // Their destructors wait for callbacks into this object.
  prefill_.clear();
  attention_.clear();
}

void WorkerSet::Poll() {
  const Time now = clock_->Now();
  struct Question {
    size_t worker;
    uint64_t number;
    WorkerStub* stub;
  };
  std::vector<Question> due;
  {
    MutexLock lock(mu_);
    for (size_t i = 0; i < workers_.size(); ++i) {
      Worker& w = workers_[i];
      if (w.polling && now >= w.answer_due) {
        SetInfo(&w, absl::DeadlineExceededError("neither answered nor failed in time"));
      }
      if (w.polling || now < w.next_poll) continue;
      w.polling = true;
      w.next_poll = now + options_.poll_interval;
      w.answer_due = now + options_.poll_timeout + std::chrono::seconds(1);
      due.push_back({i, ++w.question, w.stub});
    }
  }
  for (const Question& q : due) {
    q.stub->GetInfo(now + options_.poll_timeout,
                    [this, i = q.worker, number = q.number](absl::StatusOr<WorkerInfo> info) {
                      OnInfo(i, number, std::move(info));
                    });
  }
}

void WorkerSet::WaitForAnswers(Time deadline) const {
  MutexLock lock(mu_);
  const auto polled = [](const Worker& w) { return w.polled; };
  while (!std::all_of(workers_.begin(), workers_.end(), polled) &&
         answered_.WaitUntil(mu_, deadline)) {
  }
}

void WorkerSet::OnInfo(size_t flat, uint64_t question, absl::StatusOr<WorkerInfo> info) {
  MutexLock lock(mu_);
  Worker& w = workers_[flat];
  if (w.polling && question == w.question) SetInfo(&w, std::move(info));  // else given up before
}

void WorkerSet::SetInfo(Worker* worker, absl::StatusOr<WorkerInfo> info) {
  Worker& w = *worker;
  w.polling = false;
  w.polled = true;
  answered_.NotifyAll();
  // What it has taken it finishes or hands over.
  if (info.ok() && info->draining) info = absl::UnavailableError("it is shutting down");
  if (info.ok()) {
    w.state.info = *std::move(info);
    const uint32_t load = w.state.info.running + w.state.info.waiting;
    w.foreign = load - std::min(load, w.in_flight);
    // A worker that was unreachable is judged anew; Judge() finds out whether it agrees.
    if (absl::IsUnavailable(w.state.status)) {
      LogInfo("worker answers", {{"worker", Name(w.state)}, {"codec", w.state.info.codec}});
      w.state.status = absl::OkStatus();
    }
  } else {
    if (!absl::IsUnavailable(w.state.status)) {
      LogWarn("worker does not answer",
              {{"worker", Name(w.state)}, {"error", info.status().ToString()}});
    }
    w.state.status = absl::UnavailableError(
        absl::StrCat("GetInfo: ", absl::StatusCodeToString(info.status().code()), ": ",
                     info.status().message()));
  }
  Judge();
}

void WorkerSet::Judge() {
  std::vector<WorkerState> states;
  for (const Worker& w : workers_) states.push_back(w.state);
  const Agreement agreement = Agree(states, options_.vocab_size);
  std::shared_ptr<WorkerInfo> model;
  if (agreement.reference >= 0) {
    model = std::make_shared<WorkerInfo>(states[agreement.reference].info);
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    WorkerState& state = workers_[i].state;
    const absl::Status& verdict = agreement.verdicts[i];
    if (absl::IsFailedPrecondition(verdict) && state.status != verdict) {
      LogError("worker refused", {{"reason", std::string(verdict.message())}});
    }
    state.status = verdict;
    metrics_->worker_up.With({WorkerRoleName(state.role), state.endpoint}).Set(verdict.ok());
    if (verdict.ok()) model->max_context = std::min(model->max_context, state.info.max_context);
  }
  model_ = std::move(model);
}

std::shared_ptr<const WorkerInfo> WorkerSet::model() const {
  MutexLock lock(mu_);
  return model_;
}

bool WorkerSet::HasRole(WorkerRole role) const {
  return std::any_of(workers_.begin(), workers_.end(), [role](const Worker& w) {
    return w.state.role == role && w.state.status.ok();
  });
}

bool WorkerSet::routable() const {
  MutexLock lock(mu_);
  return HasRole(WorkerRole::kPrefill) && HasRole(WorkerRole::kAttention);
}

ClusterSnapshot WorkerSet::Snapshot(const std::string& name_space,
                                    absl::Span<const size_t> without_prefill,
                                    absl::Span<const size_t> without_attention) {
  const auto contains = [](absl::Span<const size_t> list, size_t i) {
    return std::find(list.begin(), list.end(), i) != list.end();
  };
  MutexLock lock(mu_);
  ClusterSnapshot snapshot;
  snapshot.sequence = sequence_++;
  for (size_t i = 0; i < workers_.size(); ++i) {
    const Worker& w = workers_[i];
    const bool prefill = w.state.role == WorkerRole::kPrefill;
    const size_t index = prefill ? i : i - prefill_.size();
    if (!w.state.status.ok() || w.state.info.name_space != name_space ||
        contains(prefill ? without_prefill : without_attention, index)) {
      continue;
    }
    const WorkerInfo& info = w.state.info;
    (prefill ? snapshot.prefill : snapshot.attention)
        .push_back({index, w.state.endpoint, w.in_flight, w.in_flight_tokens, w.foreign,
                    info.pool_pages, info.pool_pages_free});
  }
  return snapshot;
}

bool WorkerSet::Usable(WorkerRole role, size_t index, const std::string& name_space) const {
  MutexLock lock(mu_);
  const WorkerState& state = workers_[Flat(role, index)].state;
  return state.status.ok() && state.info.name_space == name_space;
}

WorkerLease WorkerSet::Use(WorkerRole role, size_t index, uint64_t tokens) {
  MutexLock lock(mu_);
  Worker& w = workers_[Flat(role, index)];
  ++w.in_flight;
  w.in_flight_tokens += tokens;
  return WorkerLease(this, role, index, tokens);
}

void WorkerSet::Release(WorkerRole role, size_t index, uint64_t tokens) {
  MutexLock lock(mu_);
  Worker& w = workers_[Flat(role, index)];
  --w.in_flight;
  w.in_flight_tokens -= tokens;
}

void WorkerSet::ReportFailure(WorkerRole role, size_t index, const absl::Status& status) {
  MutexLock lock(mu_);
  WorkerState& state = workers_[Flat(role, index)].state;
  metrics_->worker_failures.With({WorkerRoleName(role), state.endpoint}).Increment();
  if (!absl::IsUnavailable(status) || !state.status.ok()) return;
  LogWarn("worker failed, not used until it answers again",
          {{"worker", Name(state)}, {"error", std::string(status.message())}});
  state.status = absl::UnavailableError(status.message());
  Judge();
}

std::vector<WorkerState> WorkerSet::List() const {
  MutexLock lock(mu_);
  std::vector<WorkerState> states;
  for (const Worker& w : workers_) states.push_back(w.state);
  return states;
}

std::string WorkerSet::Explain() const {
  std::string text;
  for (const WorkerState& w : List()) {
    if (w.status.ok()) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", Name(w), ": ", w.status.message());
  }
  return text;
}

}  // namespace oscarkv::gateway
