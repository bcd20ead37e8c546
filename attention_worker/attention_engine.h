// The attention worker's core: continuous batching of decode over KV that lies in the store. Knows
// no gRPC.
//
// One thread owns the sequences and the runner. A turn of its loop: events, deadlines, admission,
// one chunk of recomputation, one decode step of all sequences that run. Fetches and puts run on
// I/O threads. Slots short: the youngest sequence gives up its slots, with its window put as
// hand-over blocks, and waits to be loaded again; the oldest always goes on.
//
// A sequence comes with all its tokens, so it can have been decoded by another worker before, or by
// this one before it was preempted. How it then goes on with the very bits that the first one would
// have gone on with is written at the head of attention_load.cc.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "attention_worker/decode_sequence.h"
#include "attention_worker/metrics.h"
#include "common/task_pool.h"
#include "model/model_runner.h"
#include "worker/block_io.h"
#include "worker/block_put.h"
#include "worker/mailbox.h"
#include "worker/metrics.h"

namespace oscarkv {

struct AttentionEngineOptions {
  int max_batch = 32;      // sequences with slots
  int max_queue = 256;     // sequences without
  int chunk_tokens = 256;  // of recomputation between two decode steps; a multiple of 64
  Duration alive_interval = std::chrono::seconds(1);  // between signs of life of a quiet sequence
};

struct AttentionLoad {
  int waiting = 0;
  int running = 0;
};

// Submit, Cancel, load: thread-safe, never block.
class AttentionEngine {
 public:
  // All pointers outlive the engine. `runner` and the slots are used on the engine's thread only.
  AttentionEngine(const AttentionEngineOptions& options, ModelRunner* runner,
                  const worker::BlockIo* io, TaskPool* fetch_pool, worker::BlockPutter* putter,
                  AttentionMetrics* metrics, worker::WorkerMetrics* worker_metrics);
  ~AttentionEngine();

  // kInvalidArgument: a bad field of the job; kResourceExhausted: the queue is full, or the
  // sequence can never fit the pool; kUnavailable: shutting down. Otherwise events.on_done comes
  // exactly once.
  absl::StatusOr<uint64_t> Submit(DecodeJob job, DecodeEvents events);
  // Ends the sequence with kCancelled before the next step, unless it ended before.
  void Cancel(uint64_t id);
  AttentionLoad load() const { return {waiting_count_.load(), running_count_.load()}; }
  bool draining() const { return draining_; }

  // Refuses new sequences, lets those taken go on for `drain`, hands the rest over: their windows
  // and last rows are put, then they end with kUnavailable. Returns when all slots are free, that
  // is within `drain` and the time that one put may take.
  void Shutdown(Duration drain);

 private:
  using Sequence = DecodeSequence;

  // kResourceExhausted: larger than the pools.
  absl::Status CheckFits(const DecodeJob& job) const;
  void Loop();
  Duration WaitTime() const;
  void Expire();
  void SayAlive();
  void Begin(const std::shared_ptr<Sequence>& seq);

  void Admit();
  void Load(Sequence* seq);
  void OnLoaded(Sequence* seq, const std::vector<LoadItem>& items,
                const std::vector<absl::Status>& statuses, const TransferTotals& totals);
  void Fetch(Sequence* seq, std::vector<LoadItem> items);
  bool GoBack(Sequence* seq, std::vector<int>* missing);
  absl::Status EncodePage(Sequence* seq, int b);
  // Adds the time since phase_start to `total`; the next part begins.
  void EndLoadPart(Sequence* seq, const char* part, Duration* total);
  void Run(Sequence* seq);

  bool RecomputeOneChunk();
  // The blocks of seq->missing that the next chunk computes, with slots; 0: no slots.
  int TakeRecomputeSlots(Sequence* seq);
  absl::Status Recompute(Sequence* seq, int count);

  bool Step();
  bool TakeStepSlots(Sequence* seq);
  void ReleaseLeftWindow(Sequence* seq);
  void RunBatch(absl::Span<Sequence* const> batch);
  void Accept(Sequence* seq, absl::Span<const float> logits);

  // Called for a sequence that lacks a slot. True: slots were freed, try again. False: it cannot go
  // on in this turn.
  bool MakeRoom(Sequence* seq);
  void Preempt(Sequence* seq);
  // Takes the sequence's slots, after what the store lacks of a running one has been put.
  void Evict(Sequence* seq);
  void Evicted(Sequence* seq);

  // Puts full blocks in the background; `windows`: which of them also as bf16 copies.
  void PutBlocks(Sequence* seq, absl::Span<const int> blocks, absl::Span<const int> windows,
                 bool partial);
  void OnPut(Sequence* seq, const worker::PutOutcome& outcome, const std::vector<int>& windows);

  bool MustHandOver() const { return stop_at_ <= Now(); }
  void HandOver(Sequence* seq);
  void Finish(Sequence* seq, const absl::Status& status, StopReason reason);
  // After a transfer ended: frees what waited for it.
  void Settle(Sequence* seq);
  void Publish();
  Time Now() const { return io_->clock().Now(); }

  const AttentionEngineOptions options_;
  ModelRunner* const runner_;
  const worker::BlockIo* const io_;
  TaskPool* const fetch_pool_;
  worker::BlockPutter* const putter_;
  AttentionMetrics* const metrics_;
  worker::WorkerMetrics* const worker_metrics_;

  std::atomic<uint64_t> next_id_{1};
  std::atomic<int> taken_{0};  // submitted and not ended; grows under gate_mu_
  std::atomic<int> waiting_count_{0}, running_count_{0};
  std::atomic<bool> draining_{false};
  Mutex gate_mu_;
  bool closing_ GUARDED_BY(gate_mu_) = false;
  worker::CancelFlags cancel_flags_;
  worker::Mailbox mailbox_;

  // Of the engine's thread. Maps are ordered by id, that is by age.
  std::map<uint64_t, std::shared_ptr<Sequence>> sequences_;
  std::map<uint64_t, Sequence*> waiting_, recomputing_, running_;
  uint64_t last_recomputed_ = 0;  // whose turn it was
  bool slots_freed_ = false;      // since the last admission
  std::vector<float> logits_;
  bool stopping_ = false;       // ends when no sequence is left
  Time stop_at_ = Time::max();  // when to hand over those that are left

  std::thread thread_;
};

}  // namespace oscarkv
