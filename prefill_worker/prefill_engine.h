// The prefill worker's core: prompts in, KV blocks into the store, first tokens out. Knows no gRPC.
//
// A prompt passes: queue -> lookup of its prefix (I/O thread) -> slots -> fetch of the matched
// blocks (I/O thread) -> chunks on the compute thread, in turn with the chunks of other prompts,
// while the I/O threads put the layers that are done -> hand-over blocks
// -> answer. The store may fail at every point: then more is computed, or fewer blocks are stored,
// and the answer still comes.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/task_pool.h"
#include "model/model_runner.h"
#include "model/sampler.h"
#include "prefill_worker/fetch_policy.h"
#include "prefill_worker/metrics.h"
#include "prefill_worker/prefill_plan.h"
#include "worker/block_io.h"
#include "worker/block_put.h"
#include "worker/cancel_flags.h"
#include "worker/mailbox.h"
#include "worker/metrics.h"

namespace oscarkv {

struct PrefillJob {
  std::string request_id;
  std::vector<int32_t> tokens;  // the whole prompt
  SamplingParams sampling;
  std::string tenant;
  Time deadline;
  std::string trace_id = {};  // for logs; empty: none
};

// kInvalidArgument names the field, its value and what is allowed.
absl::Status CheckJob(const PrefillJob& job, const ModelConfig& config);

struct PrefillResult {
  SampledToken first_token;
  int cached_tokens = 0;
  Duration queue{0};    // until its lookup began
  Duration fetch{0};    // from then until it had its slots and its matched blocks
  Duration turns{0};    // from then until the first token
  Duration store{0};    // from then until its blocks were put
  Duration compute{0};  // in the runner; a part of `turns`
  TransferTotals put, get;
  int blocks_not_stored = 0;
};

struct PrefillEngineOptions {
  int chunk_tokens = 512;  // a multiple of 64
  int max_active = 4;      // prompts between lookup and answer
  int max_queue = 64;      // prompts that wait
  WindowMiss window_miss = WindowMiss::kRecompute;
  // What pays does not matter with WindowMiss::kAll, where a part of a prefix is of no use.
  FetchPolicyOptions fetch{};
};

struct WorkerLoad {
  int waiting = 0;
  int running = 0;
};

// Submit, Cancel, load: thread-safe, never block.
class PrefillEngine {
 public:
  using Done = std::function<void(absl::StatusOr<PrefillResult>)>;

  // All pointers outlive the engine. `runner` and the slots are used on the engine's thread only.
  PrefillEngine(const PrefillEngineOptions& options, ModelRunner* runner, const worker::BlockIo* io,
                TaskPool* fetch_pool, worker::BlockPutter* putter, PrefillMetrics* metrics,
                worker::WorkerMetrics* worker_metrics);
  ~PrefillEngine();

  // `done` comes exactly once, from the engine's thread, and must not block. kInvalidArgument:
  // tokens, sampling or tenant; kResourceExhausted: the queue is full, or the prompt does not fit
  // the pool; kUnavailable: shutting down.
  absl::StatusOr<uint64_t> Submit(PrefillJob job, Done done);
  // Ends the request with kCancelled, unless it ended before; its slots are free when the transfers
  // under way have ended.
  void Cancel(uint64_t id);
  WorkerLoad load() const { return {waiting_.load(), running_.load()}; }
  bool draining() const { return draining_; }

  // Refuses new prompts, lets those taken go on for `drain`, ends the rest with kUnavailable.
  // Returns when all slots are free.
  void Shutdown(Duration drain);

 private:
  struct Sequence;

  // kResourceExhausted: larger than the pools.
  absl::Status CheckFits(const PrefillJob& job) const;
  void Loop();
  Duration WaitTime() const;
  void Expire();
  void StartQueued();
  void OnMatched(Sequence* seq, const absl::StatusOr<size_t>& matched);
  void Admit();
  // Whether the match and its window are fetched; nothing: seq->matched is 0 then.
  void ChooseFetch(Sequence* seq);
  void Fetch(Sequence* seq);
  void OnFetched(Sequence* seq, const std::vector<absl::Status>& statuses,
                 const TransferTotals& totals);
  // Goes on with `matched` fetched blocks, or back to Admit for slots. `fate`: of those that are
  // missing.
  void Proceed(Sequence* seq, int matched, bool window, const char* fate);
  bool ComputeOneChunk();
  absl::Status ComputeChunk(Sequence* seq);
  std::shared_ptr<worker::BlockPut> StartPut(Sequence* seq,
                                             std::vector<worker::StoredBlock> blocks);
  void PutHandover(Sequence* seq);
  void OnPut(Sequence* seq, const worker::PutOutcome& outcome);
  // Answers; the slots go when no transfer uses them any more.
  void Finish(Sequence* seq, absl::Status status);
  void Reap(Sequence* seq);
  void Publish();
  Time Now() const { return io_->clock().Now(); }

  const PrefillEngineOptions options_;
  ModelRunner* const runner_;
  const worker::BlockIo* const io_;
  TaskPool* const fetch_pool_;
  worker::BlockPutter* const putter_;
  PrefillMetrics* const metrics_;
  worker::WorkerMetrics* const worker_metrics_;
  FetchPolicy fetch_policy_;

  std::atomic<uint64_t> next_id_{1};
  std::atomic<int> waiting_{0};  // grows under gate_mu_
  std::atomic<int> running_{0};
  std::atomic<bool> draining_{false};
  Mutex gate_mu_;
  bool closing_ GUARDED_BY(gate_mu_) = false;
  worker::CancelFlags cancel_flags_;
  worker::Mailbox mailbox_;

  // Of the engine's thread.
  std::map<uint64_t, std::shared_ptr<Sequence>> sequences_;
  std::deque<Sequence*> queue_;    // not started
  std::deque<Sequence*> planned_;  // looked up, waiting for slots
  std::deque<Sequence*> ready_;    // to be computed, in turn
  bool stopping_ = false;          // ends when no sequence is left
  Time stop_at_ = Time::max();     // when to end those that are left

  std::thread thread_;
};

}  // namespace oscarkv
