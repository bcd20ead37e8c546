// The workers that the gateway may use: asks each for its info once a second, compares what they
// say of model, codec and namespace, counts what this gateway has running on each.
//
// A worker is usable while it answers and agrees with the others. The reference is what most
// answering workers say; at a draw, what the worker listed first says. Those that differ are
// refused, with both sides' values in log and status, until they agree.
//
// Thread-safe; no method blocks except WaitForAnswers. Polling is driven from outside (Poll), so
// that tests decide when time passes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "gateway/metrics.h"
#include "gateway/router.h"
#include "gateway/types.h"
#include "gateway/worker_stub.h"

namespace oscarkv::gateway {

struct WorkerSetOptions {
  Duration poll_interval = std::chrono::seconds(1);
  Duration poll_timeout = std::chrono::seconds(3);
  uint32_t vocab_size = 0;  // of the gateway's own model folder; workers must say the same. 0: any
};

struct WorkerState {
  WorkerRole role = WorkerRole::kPrefill;
  std::string endpoint;
  absl::Status status;  // OK: usable. kUnavailable: does not answer. kFailedPrecondition: refused
  WorkerInfo info;      // the last it said; empty before the first answer
};

// Who is usable: one verdict per worker. `reference` is the index of a worker whose model all
// usable ones share, or -1.
struct Agreement {
  int reference = -1;
  std::vector<absl::Status> verdicts;
};
// A pure function of the workers' answers; states with a kUnavailable status keep it.
Agreement Agree(absl::Span<const WorkerState> workers, uint32_t vocab_size);

class WorkerSet;

// One request's share of a worker's load, given back on destruction. The set outlives it.
class WorkerLease {
 public:
  WorkerLease() = default;
  WorkerLease(WorkerSet* set, WorkerRole role, size_t index, uint64_t tokens)
      : set_(set), role_(role), index_(index), tokens_(tokens) {}
  WorkerLease(WorkerLease&& other) noexcept { *this = std::move(other); }
  WorkerLease& operator=(WorkerLease&& other) noexcept;
  ~WorkerLease() { Release(); }
  void Release();
  size_t index() const { return index_; }

 private:
  WorkerSet* set_ = nullptr;
  WorkerRole role_ = WorkerRole::kPrefill;
  size_t index_ = 0;
  uint64_t tokens_ = 0;
};

class WorkerSet {
 public:
  WorkerSet(const WorkerSetOptions& options, std::vector<std::unique_ptr<PrefillStub>> prefill,
            std::vector<std::unique_ptr<AttentionStub>> attention, GatewayMetrics* metrics,
            const Clock* clock);
  ~WorkerSet();  // waits for calls under way, which it cancels

  // Asks every worker whose last question is poll_interval ago and answered. One that is not even
  // failed a second after its deadline is given up, the worker with it, and asked again: deadlines
  // of calls depend on more than our clock.
  void Poll();

  // Blocks until every worker has answered or failed a poll, or until `deadline`: before a gateway
  // says that it is up.
  void WaitForAnswers(Time deadline) const;

  // What the usable workers agree on (max_context: the smallest); null while there is none.
  std::shared_ptr<const WorkerInfo> model() const;
  // One usable worker of each role, at least.
  bool routable() const;

  // The usable workers that share the namespace `name_space`, less the excluded indices.
  ClusterSnapshot Snapshot(const std::string& name_space, absl::Span<const size_t> without_prefill,
                           absl::Span<const size_t> without_attention);
  // It is usable and has this namespace.
  bool Usable(WorkerRole role, size_t index, const std::string& name_space) const;
  WorkerLease Use(WorkerRole role, size_t index, uint64_t tokens);
  // A call on the worker failed: when it cannot be reached, it is not used again before it answers
  // a poll.
  void ReportFailure(WorkerRole role, size_t index, const absl::Status& status);

  std::vector<WorkerState> List() const;
  // Why no worker of a role is usable: every worker's verdict.
  std::string Explain() const;

  PrefillStub& prefill(size_t index) { return *prefill_[index]; }
  AttentionStub& attention(size_t index) { return *attention_[index]; }

 private:
  friend class WorkerLease;
  struct Worker {
    WorkerStub* stub = nullptr;
    WorkerState state;
    bool polling = false;
    Time answer_due{};      // then the question under way is given up
    uint64_t question = 0;  // number of the last one
    bool polled = false;    // at least once
    Time next_poll{};
    uint32_t in_flight = 0;
    uint64_t in_flight_tokens = 0;
    uint32_t foreign = 0;
  };

  size_t Flat(WorkerRole role, size_t index) const {
    return role == WorkerRole::kPrefill ? index : prefill_.size() + index;
  }
  void OnInfo(size_t flat, uint64_t question, absl::StatusOr<WorkerInfo> info);
  void SetInfo(Worker* worker, absl::StatusOr<WorkerInfo> info) REQUIRES(mu_);
  void Judge() REQUIRES(mu_);
  bool HasRole(WorkerRole role) const REQUIRES(mu_);
  void Release(WorkerRole role, size_t index, uint64_t tokens);

  const WorkerSetOptions options_;
  GatewayMetrics* const metrics_;
  const Clock* const clock_;
  std::vector<std::unique_ptr<PrefillStub>> prefill_;
  std::vector<std::unique_ptr<AttentionStub>> attention_;

  mutable Mutex mu_;
  mutable CondVar answered_;
  std::vector<Worker> workers_ GUARDED_BY(mu_);  // prefill first, then attention
  std::shared_ptr<const WorkerInfo> model_ GUARDED_BY(mu_);
  uint64_t sequence_ GUARDED_BY(mu_) = 0;
};

}  // namespace oscarkv::gateway
