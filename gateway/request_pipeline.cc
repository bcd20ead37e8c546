#include "gateway/request_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/trace.h"

namespace oscarkv::gateway {
namespace {

// Tenants do not meet each other's ids. Neither part has a space.
std::string NameOf(const std::string& tenant, const std::string& request_id) {
  return absl::StrCat(tenant, " ", request_id);
}

}  // namespace

RequestPipeline::RequestPipeline(const PipelineOptions& options, const PipelineDeps& deps,
                                 std::string name)
    : name_(std::move(name)),
      env_{options, deps, [this](const Request* request) { Forget(request); }, &log_,
           [this] { Leave(); }},
      admission_(options.admission, deps.metrics, deps.clock) {}

RequestPipeline::~RequestPipeline() {
  Shutdown(Time{});
}

std::shared_ptr<Request> RequestPipeline::Start(GenerateInput input, Time deadline,
                                                GenerateSink* sink) {
  absl::StatusOr<std::shared_ptr<Request>> request = Admit(std::move(input), deadline, sink);
  if (!request.ok()) {
    env_.deps.metrics->requests.With({absl::StatusCodeToString(request.status().code())})
        .Increment();
    sink->Finish(request.status());
    return nullptr;
  }
  (*request)->Start();
  return *std::move(request);
}

absl::StatusOr<std::shared_ptr<Request>> RequestPipeline::Admit(GenerateInput input, Time deadline,
                                                                GenerateSink* sink) {
  const uint64_t number = requests_.fetch_add(1) + 1;
  RETURN_IF_ERROR(ValidateRequest(input, env_.options.limits, env_.options.model));
  if (input.request_id.empty()) input.request_id = absl::StrCat(name_, "-", number);
  if (input.trace_id.empty()) input.trace_id = NewTraceId();
  if (input.attempt > 1) EndEarlierAttempt(input);
  ASSIGN_OR_RETURN(auto share, env_.deps.quota->Enter(input.tenant));
  MutexLock lock(mu_);
  if (closed_) return absl::UnavailableError("the gateway is shutting down");
  const std::string name = NameOf(input.tenant, input.request_id);
  if (by_name_.contains(name)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id \"", input.request_id, "\": a request with this id is running"));
  }
  ASSIGN_OR_RETURN(auto ticket, admission_.Enter());
  auto request = std::make_shared<Request>(&env_, std::move(input), deadline, std::move(ticket),
                                           std::move(share), sink);
  by_name_[name] = request;
  ++active_;
  return request;
}

void RequestPipeline::EndEarlierAttempt(const GenerateInput& input) {
  std::shared_ptr<Request> earlier;
  {
    MutexLock lock(mu_);
    const auto it = by_name_.find(NameOf(input.tenant, input.request_id));
    if (it == by_name_.end()) return;
    earlier = it->second;
  }
  if (earlier->attempt() >= input.attempt) return;
  // Forgets it before it returns; a third attempt that comes in between wins, and this one is told.
  earlier->Cancel(
      absl::AbortedError(absl::StrCat("attempt ", input.attempt, " took this one's place")));
}

// Not the last reference: whoever ends a request holds one.
void RequestPipeline::Forget(const Request* request) {
  MutexLock lock(mu_);
  by_name_.erase(NameOf(request->tenant(), request->id()));
}

void RequestPipeline::Leave() {
  MutexLock lock(mu_);
  if (--active_ == 0) idle_.NotifyAll();
}

std::vector<std::shared_ptr<Request>> RequestPipeline::All() const {
  MutexLock lock(mu_);
  std::vector<std::shared_ptr<Request>> all;
  for (const auto& [id, request] : by_name_) all.push_back(request);
  return all;
}

std::vector<RequestRecord> RequestPipeline::InFlight() const {
  std::vector<RequestRecord> records;
  for (const auto& request : All()) records.push_back(request->Record());
  std::sort(records.begin(), records.end(),
            [](const RequestRecord& a, const RequestRecord& b) { return a.lasted < b.lasted; });
  return records;
}

absl::StatusOr<RequestRecord> RequestPipeline::Find(absl::string_view id) const {
  for (RequestRecord& record : InFlight()) {
    if (record.request_id == id || record.trace_id == id) return std::move(record);
  }
  if (auto record = log_.Find(id)) return *std::move(record);
  return absl::NotFoundError(absl::StrCat("no request \"", absl::CHexEscape(id.substr(0, 200)),
                                          "\" is under way at this gateway or ", "among the last ",
                                          kLoggedRequests, " that ended here"));
}

void RequestPipeline::Tick() {
  const Time now = env_.deps.clock->Now();
  for (const auto& request : All()) request->Tick(now);
  admission_.UpdateQueueAge();
}

void RequestPipeline::Shutdown(Time drain_until) {
  {
    MutexLock lock(mu_);
    closed_ = true;
    while (active_ > 0 && idle_.WaitUntil(mu_, drain_until)) {
    }
  }
  for (const auto& request : All()) {
    request->Cancel(absl::UnavailableError("the gateway is shutting down"));
  }
  MutexLock lock(mu_);
  while (active_ > 0) idle_.Wait(mu_);
}

}  // namespace oscarkv::gateway
