// The life of a sequence: submitted, admitted, ended or handed over. Loading is in
// attention_load.cc, the steps in between are in attention_step.cc.
//
// A sequence waits without slots. Admission takes all slots that its tokens need, then an I/O
// thread fetches. What the store does not have is computed: exactly the blocks that lack a form
// they need (their page, or the bf16 rows of a window block). Sequence::pending_io counts the
// transfers under way; a sequence that ended or was preempted keeps its slots until it is zero.
#include "attention_worker/attention_engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/trace.h"

namespace oscarkv {

using worker::PutOutcome;
using worker::StoredBlock;

namespace {
double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}
}  // namespace

AttentionEngine::AttentionEngine(const AttentionEngineOptions& options, ModelRunner* runner,
                                 const worker::BlockIo* io, TaskPool* fetch_pool,
                                 worker::BlockPutter* putter, AttentionMetrics* metrics,
                                 worker::WorkerMetrics* worker_metrics)
    : options_(options),
      runner_(runner),
      io_(io),
      fetch_pool_(fetch_pool),
      putter_(putter),
      metrics_(metrics),
      worker_metrics_(worker_metrics) {
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "attn-engine");
}

AttentionEngine::~AttentionEngine() {
  Shutdown(Duration(0));
}

void AttentionEngine::Shutdown(Duration drain) {
  {
    MutexLock lock(gate_mu_);  // what Submit took came into the mailbox before this
    closing_ = true;
    draining_ = true;
    mailbox_.Post([this, at = Now() + drain] {
      stopping_ = true;
      stop_at_ = at;
    });
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status AttentionEngine::CheckFits(const DecodeJob& job) const {
  const DecodeSlots plan = PlanDecodeSlots(static_cast<int>(job.tokens.size()) - 1, io_->coded());
  const KvPool& pool = io_->arena().pool();
  if (plan.bf16_slots() > pool.num_blocks() || plan.num_pages > pool.num_pages()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a sequence of ", job.tokens.size(), " tokens needs ", plan.bf16_slots(),
                     " bf16 blocks and ", plan.num_pages, " pages; this worker's pools hold ",
                     pool.num_blocks(), " and ", pool.num_pages(), " (--block-pool, --page-pool)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> AttentionEngine::Submit(DecodeJob job, DecodeEvents events) {
  RETURN_IF_ERROR(CheckJob(job, runner_->config()));
  RETURN_IF_ERROR(CheckFits(job));
  const uint64_t id = next_id_++;
  worker::ChainNames names = io_->Names(job.tenant, job.prompt_tokens);
  MutexLock lock(gate_mu_);
  if (closing_) return absl::UnavailableError("the attention worker is shutting down");
  if (taken_ >= options_.max_batch + options_.max_queue) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", taken_.load(), " sequences run or wait"));
  }
  ++taken_;
  auto seq = std::make_shared<Sequence>(id, std::move(job), std::move(events), std::move(names),
                                        &io_->arena().pool(), cancel_flags_.Add(id), Now());
  mailbox_.Post([this, seq] { Begin(seq); });
  return id;
}

void AttentionEngine::Cancel(uint64_t id) {
  cancel_flags_.Set(id);
  mailbox_.Post([this, id] {
    auto it = sequences_.find(id);
    if (it == sequences_.end()) return;
    Finish(it->second.get(), absl::CancelledError("the request was cancelled"), StopReason::kNone);
  });
}

void AttentionEngine::Loop() {
  while (!stopping_ || !sequences_.empty()) {
    mailbox_.RunPending();
    Expire();
    SayAlive();
    Admit();
    slots_freed_ = false;
    bool worked = RecomputeOneChunk();
    worked |= Step();
    Publish();
    if (worked || slots_freed_ || (stopping_ && sequences_.empty())) continue;
    mailbox_.Wait(WaitTime());
  }
}

// Until the next deadline or sign of life; those that ended or are evicted wait for their
// transfers, which report.
Duration AttentionEngine::WaitTime() const {
  const Time now = Now();
  Time next = Time::max();
  for (const auto& [id, seq] : sequences_) {
    if (seq->state == DecodeState::kEnded) continue;
    next = std::min({next, seq->job.deadline, seq->last_event + options_.alive_interval});
    if (seq->state != DecodeState::kEvicting) next = std::min(next, stop_at_);
  }
  return next == Time::max() ? Duration::max() : std::max(Duration(0), next - now);
}

void AttentionEngine::Expire() {
  const Time now = Now();
  const bool stop = MustHandOver();
  std::vector<std::shared_ptr<Sequence>> late;
  for (const auto& [id, seq] : sequences_) {
    if (stop || seq->job.deadline <= now) late.push_back(seq);
  }
  for (const auto& seq : late) {
    if (seq->job.deadline <= now) {
      Finish(seq.get(), absl::DeadlineExceededError("the request's deadline passed"),
             StopReason::kNone);
    } else {
      HandOver(seq.get());
    }
  }
}

// A running sequence leaves in the store what a preempted one does; whoever takes it on loads it
// as that would be loaded. One that does not run had left it there before, or never had it.
void AttentionEngine::HandOver(Sequence* seq) {
  if (seq->state == DecodeState::kRunning) return Evict(seq);  // Evicted ends it
  if (seq->state == DecodeState::kEvicting) return;
  Finish(seq, absl::UnavailableError("the attention worker is shutting down; handed over"),
         StopReason::kNone);
}

void AttentionEngine::SayAlive() {
  const Time now = Now();
  for (const auto& [id, seq] : sequences_) {
    if (seq->state == DecodeState::kEnded || now < seq->last_event + options_.alive_interval)
      continue;
    seq->last_event = now;
    if (seq->events.on_alive) seq->events.on_alive();
  }
}

void AttentionEngine::Begin(const std::shared_ptr<Sequence>& seq) {
  sequences_[seq->id] = seq;
  waiting_[seq->id] = seq.get();
  // The prompt's first token, which prefill chose, may be all that was wanted.
  const StopReason reason = seq->Stop(runner_->config().max_position_embeddings);
  if (reason != StopReason::kNone) Finish(seq.get(), absl::OkStatus(), reason);
}

// First come, first served, those that were preempted included. Whoever comes to others leaves a
// slot for each of them to grow, otherwise it would soon be preempted again.
void AttentionEngine::Admit() {
  const KvPool& pool = io_->arena().pool();
  while (!waiting_.empty()) {
    const int active = static_cast<int>(sequences_.size() - waiting_.size());
    if (active >= options_.max_batch) return;
    Sequence* seq = waiting_.begin()->second;
    const bool taken = TakeDecodeSlots(PlanDecodeSlots(seq->position(), io_->coded()), &seq->kv);
    const bool headroom =
        pool.free_blocks() >= active && (!io_->coded() || pool.free_pages() >= active);
    if (!taken || !headroom) {
      seq->kv.Clear();
      if (active == 0) {
        Finish(seq,
               absl::ResourceExhaustedError("the sequence has outgrown this worker's KV pools"),
               StopReason::kNone);
        continue;
      }
      return;
    }
    waiting_.erase(seq->id);
    EndLoadPart(seq, "queue", &seq->load.queue);
    Load(seq);
  }
}

void AttentionEngine::PutBlocks(Sequence* seq, absl::Span<const int> mains,
                                absl::Span<const int> windows, bool partial) {
  std::vector<int> copies(windows.begin(), windows.end());
  if (partial) copies.push_back(seq->block());
  for (int b : copies) {
    if (const absl::Status status = runner_->ToHost(seq->kv, b); !status.ok()) {
      metrics_->dropped_puts.Increment();
      LogWarn("blocks cannot be put",
              {{"request", seq->job.request_id}, {"error", status.ToString()}});
      return;
    }
  }
  std::vector<StoredBlock> blocks;
  for (int b : mains) blocks.push_back(io_->Main(seq->names, seq->kv, b));
  for (int b : windows) blocks.push_back(io_->Window(seq->names, seq->kv, b));
  if (partial) blocks.push_back(io_->Partial(seq->names, seq->kv, seq->partial_rows()));
  if (blocks.empty()) return;
  // A store that lags must not pile up work: what is skipped is computed again if ever needed.
  constexpr int kMaxPutsInFlight = 8;
  if (seq->puts_in_flight >= kMaxPutsInFlight) {
    metrics_->dropped_puts.Increment();
    return;
  }
  ++seq->pending_io;
  ++seq->puts_in_flight;
  std::vector<int> reading(windows.begin(), windows.end());
  seq->window_puts.insert(reading.begin(), reading.end());
  const TraceScope trace(seq->job.trace_id);
  putter_
      ->Start(std::move(blocks),
              [this, seq, reading](PutOutcome outcome) {
                mailbox_.Post([this, seq, reading, outcome = std::move(outcome)] {
                  OnPut(seq, outcome, reading);
                });
              })
      ->AllReady();
}

void AttentionEngine::OnPut(Sequence* seq, const PutOutcome& outcome,
                            const std::vector<int>& windows) {
  --seq->pending_io;
  --seq->puts_in_flight;
  for (int b : windows) seq->window_puts.erase(b);
  for (const absl::Status& status : outcome.statuses) worker_metrics_->CountPut(status);
  worker::AddTotals(outcome.totals, &seq->result.put);
  worker_metrics_->CountBytes({}, outcome.totals);
  Settle(seq);
}

void AttentionEngine::Finish(Sequence* seq, const absl::Status& status, StopReason reason) {
  if (seq->state == DecodeState::kEnded) return;
  if (seq->load_cancelled != nullptr) seq->load_cancelled->store(true);
  for (auto* list : {&waiting_, &recomputing_, &running_}) list->erase(seq->id);
  seq->state = DecodeState::kEnded;
  seq->Measure(io_->coded());
  seq->result.reason = reason;
  metrics_->requests.With({absl::StatusCodeToString(status.code())}).Increment();
  --taken_;
  cancel_flags_.Remove(seq->id);
  LogInfo("decode ended", {{"request", seq->job.request_id},
                           {"trace", seq->job.trace_id},
                           {"status", absl::StatusCodeToString(status.code())},
                           {"tokens", absl::StrCat(seq->tokens.size())},
                           {"generated", absl::StrCat(seq->generated)},
                           {"recomputed", absl::StrCat(seq->result.recomputed_tokens)},
                           {"preemptions", absl::StrCat(seq->result.preemptions)},
                           {"seconds", absl::StrCat(Seconds(Now() - seq->arrived))}});
  std::exchange(seq->events, {}).on_done(status, seq->result);
  Settle(seq);
}

void AttentionEngine::Settle(Sequence* seq) {
  if (seq->pending_io > 0) return;
  if (seq->state == DecodeState::kEvicting) {
    Evicted(seq);
  } else if (seq->state == DecodeState::kEnded) {
    sequences_.erase(seq->id);
    slots_freed_ = true;
  }
}

void AttentionEngine::Publish() {
  waiting_count_ = static_cast<int>(waiting_.size());
  const int running = static_cast<int>(sequences_.size() - waiting_.size());
  running_count_ = running;
  metrics_->queue_depth.Set(static_cast<double>(waiting_.size()));
  metrics_->queue_age.Set(waiting_.empty() ? 0
                                           : Seconds(Now() - waiting_.begin()->second->arrived));
  metrics_->running.Set(running);
  worker_metrics_->SetPool(io_->arena().pool());
}

}  // namespace oscarkv
