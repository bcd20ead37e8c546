// All requests of a gateway: refuses or admits them, watches their deadlines, ends them at
// shutdown. See gateway/request.h for what happens to one.
//
// Thread-safe. Destruction: first Shutdown, then the executor and the worker set (both wait for
// callbacks into requests), then this.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "gateway/admission.h"
#include "gateway/request.h"

namespace oscarkv::gateway {

class RequestPipeline {
 public:
  static constexpr size_t kLoggedRequests = 512;
  // name: part of the request ids that are made here, different in every gateway process.
  RequestPipeline(const PipelineOptions& options, const PipelineDeps& deps, std::string name);
  ~RequestPipeline();

  // Never blocks. Null when the request is refused: the sink's Finish has then been called, with
  // kInvalidArgument, kAlreadyExists (a request with this id runs), kResourceExhausted (full; with
  // a retry hint) or kUnavailable (shutting down). The deadline covers everything: waiting,
  // prefill, the whole answer.
  std::shared_ptr<Request> Start(GenerateInput input, Time deadline, GenerateSink* sink);

  // Ends the requests whose deadline has passed, moves those whose worker is silent; updates the
  // gauges of time. To be called many times a second.
  void Tick();
  // Refuses new requests, lets those under way end until `drain_until` (steady time), then ends
  // them with kUnavailable. Returns when there are none. May be called again.
  void Shutdown(Time drain_until);

  // The requests under way, the latest arrived first; and the latest of those that ended.
  std::vector<RequestRecord> InFlight() const;
  const RequestLog& log() const { return log_; }
  // By the id of the request or of its trace, among both; kNotFound says what was searched.
  absl::StatusOr<RequestRecord> Find(absl::string_view id) const;
  int running() const { return admission_.running(); }
  int waiting() const { return admission_.waiting(); }
  uint64_t requests() const { return requests_; }  // since the start, refused ones included
  const Tokenizer& tokenizer() const { return *env_.deps.tokenizer; }

 private:
  absl::StatusOr<std::shared_ptr<Request>> Admit(GenerateInput input, Time deadline,
                                                 GenerateSink* sink);
  // Ends an earlier attempt of the request, whose client knows that its stream is broken.
  void EndEarlierAttempt(const GenerateInput& input);
  void Forget(const Request* request);
  void Leave();
  std::vector<std::shared_ptr<Request>> All() const;

  const std::string name_;
  RequestLog log_{kLoggedRequests};
  Request::Env env_;
  Admission admission_;
  std::atomic<uint64_t> requests_{0};

  mutable Mutex mu_;
  CondVar idle_;
  bool closed_ GUARDED_BY(mu_) = false;
  int active_ GUARDED_BY(mu_) = 0;  // admitted and not gone
  // By tenant and id.
  absl::flat_hash_map<std::string, std::shared_ptr<Request>> by_name_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::gateway
