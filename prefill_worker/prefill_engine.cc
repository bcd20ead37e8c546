// One thread owns all sequences and the runner. Lookups, fetches and puts run on the I/O pool and
// report by events in the mailbox; Sequence::pending_io counts those under way. A sequence that
// ended answers at once but stays, with its slots, until pending_io is zero: an I/O thread may
// still read or write them.
//
// Slots are taken all at once, before the fetch, for the whole prompt: a prompt that computes never
// waits for memory that another computing prompt holds.
#include "prefill_worker/prefill_engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/trace.h"
#include "worker/request_check.h"

namespace oscarkv {

using worker::BlockPut;
using worker::PutOutcome;
using worker::StoredBlock;

namespace {

double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}

FetchPolicyOptions FetchOptions(const PrefillEngineOptions& options) {
  FetchPolicyOptions fetch = options.fetch;
  fetch.measured = fetch.measured && options.window_miss == WindowMiss::kRecompute;
  return fetch;
}

}  // namespace

struct PrefillEngine::Sequence {
  Sequence(uint64_t id, PrefillJob job, Done done, const Sha256Digest& name_space, KvPool* pool,
           worker::CancelFlag cancelled, Time now)
      : id(id),
        job(std::move(job)),
        done(std::move(done)),
        names(name_space, SIZE_MAX, this->job.tenant),
        kv(pool),
        cancelled(std::move(cancelled)),
        arrived(now) {}

  int num_tokens() const { return static_cast<int>(job.tokens.size()); }
  absl::Span<const int32_t> tokens() const { return job.tokens; }
  bool ended() const { return done == nullptr; }

  const uint64_t id;
  const PrefillJob job;
  Done done;  // null: answered
  worker::ChainNames names;
  SequenceKv kv;
  // For the I/O thread that fetches and the runner, which cannot hear the mailbox.
  const worker::CancelFlag cancelled;
  int pending_io = 0;
  bool waiting = true;  // counted in waiting_
  int matched = 0;      // blocks of the prompt that are stored (first) and fetched (then)
  bool fetch_window = true;
  int pos = 0;  // tokens before it are computed or fetched
  bool computed = false;
  PrefillResult result;
  Time arrived, started{}, fetched{}, compute_end{};
};

PrefillEngine::PrefillEngine(const PrefillEngineOptions& options, ModelRunner* runner,
                             const worker::BlockIo* io, TaskPool* fetch_pool,
                             worker::BlockPutter* putter, PrefillMetrics* metrics,
                             worker::WorkerMetrics* worker_metrics)
    : options_(options),
      runner_(runner),
      io_(io),
      fetch_pool_(fetch_pool),
      putter_(putter),
      metrics_(metrics),
      worker_metrics_(worker_metrics),
      fetch_policy_(FetchOptions(options), &io->clock(), metrics) {
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "prefill-engine");
}

PrefillEngine::~PrefillEngine() {
  Shutdown(Duration(0));
}

void PrefillEngine::Shutdown(Duration drain) {
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

absl::Status CheckJob(const PrefillJob& job, const ModelConfig& config) {
  // One position stays free for the first token of the answer.
  RETURN_IF_ERROR(
      worker::CheckTokens(job.tokens, config.vocab_size, config.max_position_embeddings - 1));
  RETURN_IF_ERROR(ValidateSampling(job.sampling));
  RETURN_IF_ERROR(worker::CheckName("request_id", job.request_id));
  return worker::CheckName("tenant", job.tenant);
}

absl::Status PrefillEngine::CheckFits(const PrefillJob& job) const {
  const SlotPlan plan = PlanSlots(static_cast<int>(job.tokens.size()), 0, io_->coded());
  const KvPool& pool = io_->arena().pool();
  if (plan.bf16_slots() > pool.num_blocks() || plan.num_pages > pool.num_pages()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a prompt of ", job.tokens.size(), " tokens needs ", plan.bf16_slots(),
                     " bf16 blocks and ", plan.num_pages, " pages; this worker's pools hold ",
                     pool.num_blocks(), " and ", pool.num_pages(), " (--block-pool, --page-pool)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PrefillEngine::Submit(PrefillJob job, Done done) {
  RETURN_IF_ERROR(CheckJob(job, runner_->config()));
  RETURN_IF_ERROR(CheckFits(job));
  const uint64_t id = next_id_++;
  const Sha256Digest name_space = io_->NameSpace(job.tenant);
  MutexLock lock(gate_mu_);
  if (closing_) return absl::UnavailableError("the prefill worker is shutting down");
  if (waiting_ >= options_.max_queue) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", options_.max_queue, " prompts wait"));
  }
  ++waiting_;
  auto seq = std::make_shared<Sequence>(id, std::move(job), std::move(done), name_space,
                                        &io_->arena().pool(), cancel_flags_.Add(id), Now());
  mailbox_.Post([this, seq] {
    sequences_[seq->id] = seq;
    queue_.push_back(seq.get());
  });
  return id;
}

void PrefillEngine::Cancel(uint64_t id) {
  cancel_flags_.Set(id);
  mailbox_.Post([this, id] {
    auto it = sequences_.find(id);
    if (it != sequences_.end())
      Finish(it->second.get(), absl::CancelledError("the request was cancelled"));
  });
}

void PrefillEngine::Loop() {
  while (!stopping_ || !sequences_.empty()) {
    mailbox_.RunPending();
    Expire();
    StartQueued();
    Admit();
    const bool worked = ComputeOneChunk();
    Publish();
    if (!worked && (!stopping_ || !sequences_.empty())) mailbox_.Wait(WaitTime());
  }
}

// Until the next deadline; those that ended wait for their transfers, which report.
Duration PrefillEngine::WaitTime() const {
  const Time now = Now();
  Time next = Time::max();
  for (const auto& [id, seq] : sequences_) {
    if (!seq->ended()) next = std::min({next, seq->job.deadline, stop_at_});
  }
  return next == Time::max() ? Duration::max() : std::max(Duration(0), next - now);
}

void PrefillEngine::Expire() {
  const Time now = Now();
  const bool stop = stop_at_ <= now;
  std::vector<Sequence*> late;
  for (const auto& [id, seq] : sequences_) {
    if (!seq->ended() && (stop || seq->job.deadline <= now)) late.push_back(seq.get());
  }
  for (Sequence* seq : late) {
    Finish(seq, stop ? absl::UnavailableError("the prefill worker is shutting down")
                     : absl::DeadlineExceededError("the request's deadline passed"));
  }
}

// Queue -> lookup.
void PrefillEngine::StartQueued() {
  while (running_ < options_.max_active && !queue_.empty()) {
    Sequence* seq = queue_.front();
    queue_.pop_front();
    seq->waiting = false;
    --waiting_;
    ++running_;
    seq->started = Now();
    seq->result.queue = seq->started - seq->arrived;
    metrics_->ttft_part.HistogramWith({"queue"}).Observe(Seconds(seq->result.queue));
    seq->names.Extend(seq->tokens());
    if (seq->names.chain().empty()) {
      planned_.push_back(seq);
      continue;
    }
    ++seq->pending_io;
    std::vector<BlockKey> chain(seq->names.chain().begin(), seq->names.chain().end());
    fetch_pool_->Post([this, seq, chain = std::move(chain)] {
      const TraceScope trace(seq->job.trace_id);
      auto store = io_->Store(seq->names.tenant());
      auto matched = store.ok() ? (*store)->Match(chain, io_->Deadline()) : store.status();
      mailbox_.Post([this, seq, matched = std::move(matched)] { OnMatched(seq, matched); });
    });
  }
}

void PrefillEngine::OnMatched(Sequence* seq, const absl::StatusOr<size_t>& matched) {
  --seq->pending_io;
  if (seq->ended()) return Reap(seq);
  if (!matched.ok()) worker_metrics_->CountGet(matched.status());
  seq->matched = static_cast<int>(std::min(matched.value_or(0), seq->names.chain().size()));
  planned_.push_back(seq);
}

// Lookup -> slots -> fetch. First come, first served: a long prompt is not starved by short ones.
void PrefillEngine::Admit() {
  while (!planned_.empty()) {
    Sequence* seq = planned_.front();
    ChooseFetch(seq);
    if (!TakeSlots(PlanSlots(seq->num_tokens(), seq->matched, io_->coded()), &seq->kv)) {
      seq->kv.Clear();
      return;  // Check() made sure that it fits once others have ended
    }
    planned_.pop_front();
    if (seq->matched > 0) {
      Fetch(seq);
    } else {
      Proceed(seq, 0, /*window=*/true, "lost");
    }
  }
}

void PrefillEngine::ChooseFetch(Sequence* seq) {
  if (seq->matched == 0) return;
  const auto bytes_of = [this](BlockKind kind) {
    return BlockBytes(static_cast<BlockBody>(kind), io_->identity().shape);
  };
  uint64_t bytes = 0;
  for (int b = 0; b < seq->matched; ++b)
    bytes += bytes_of(io_->IsPage(b) ? BlockKind::kPage : BlockKind::kBf16);
  const int prompts = 1 + static_cast<int>(ready_.size());
  const int end = std::min(seq->matched * kBlockTokens, seq->num_tokens() - 1);
  const int window = io_->coded() ? seq->matched - WindowBegin(seq->matched) : 0;
  const auto fetch = fetch_policy_.FetchSeconds(bytes);
  const auto compute = fetch_policy_.ComputeSeconds(0, end, prompts);
  auto all_fetch = fetch;
  seq->fetch_window = window > 0;
  if (window > 0) {
    const auto window_fetch = fetch_policy_.FetchSeconds(window * bytes_of(BlockKind::kHandover));
    const auto window_compute =
        fetch_policy_.ComputeSeconds(WindowBegin(seq->matched) * kBlockTokens, end, prompts);
    seq->fetch_window = fetch_policy_.WorthFetching(window_fetch, window_compute);
    const auto& least = seq->fetch_window ? window_fetch : window_compute;
    if (all_fetch && least) *all_fetch += *least;
  }
  if (fetch_policy_.WorthFetching(all_fetch, compute)) return;
  metrics_->prefix_tokens.With({"chosen"}).Add(seq->matched * kBlockTokens);
  seq->matched = 0;
}

void PrefillEngine::Fetch(Sequence* seq) {
  std::vector<StoredBlock> blocks;
  const int matched = seq->matched;
  const int window = seq->fetch_window ? WindowBegin(matched) : matched;
  for (int b = 0; b < matched; ++b) blocks.push_back(io_->Main(seq->names, seq->kv, b));
  for (int b = window; b < matched; ++b) blocks.push_back(io_->Window(seq->names, seq->kv, b));
  worker::FetchPace pace;
  pace.get_blocks = FetchPolicy::kGetBlocks;
  // The window's copies, which come last, stand for the tokens of their blocks once more.
  pace.patience = [this, matched, window, prompts = 1 + static_cast<int>(ready_.size())](
                      size_t begin, size_t end) {
    const int first = static_cast<int>(begin), last = static_cast<int>(end);
    auto seconds = fetch_policy_.ComputeSeconds(std::min(first, matched) * kBlockTokens,
                                                std::min(last, matched) * kBlockTokens, prompts);
    if (last > matched && seconds) {
      *seconds +=
          *fetch_policy_.ComputeSeconds((window + std::max(0, first - matched)) * kBlockTokens,
                                        (window + last - matched) * kBlockTokens, prompts);
    }
    return fetch_policy_.Patience(seconds);
  };
  pace.observe = [this](const TransferTotals& moved, uint64_t asked, Duration took, bool late) {
    fetch_policy_.Fetched(moved.lanes, asked, moved.bytes, took, late);
  };
  ++seq->pending_io;
  fetch_pool_->Post(
      [this, seq, blocks = std::move(blocks), cancelled = seq->cancelled, pace = std::move(pace)] {
        const TraceScope trace(seq->job.trace_id);
        TransferTotals totals;
        auto statuses = io_->Fetch(blocks, *cancelled, &totals, pace);
        mailbox_.Post([this, seq, statuses = std::move(statuses), totals] {
          OnFetched(seq, statuses, totals);
        });
      });
}

void PrefillEngine::OnFetched(Sequence* seq, const std::vector<absl::Status>& statuses,
                              const TransferTotals& totals) {
  --seq->pending_io;
  worker::AddTotals(totals, &seq->result.get);
  worker_metrics_->CountBytes(totals, {});
  if (seq->ended()) return Reap(seq);
  for (const absl::Status& status : statuses) worker_metrics_->CountGet(status);
  const auto first_bad = [&](size_t begin, size_t end) {
    return std::find_if(statuses.begin() + begin, statuses.begin() + end,
                        [](const absl::Status& s) { return !s.ok(); }) -
           statuses.begin();
  };
  const size_t asked = seq->matched;
  const size_t got = first_bad(0, asked);
  const size_t bad = got < asked ? got : first_bad(asked, statuses.size());
  const bool window = bad == statuses.size() && seq->fetch_window;
  const char* fate = bad == statuses.size()                    ? "chosen"
                     : absl::IsDeadlineExceeded(statuses[bad]) ? "late"
                                                               : "lost";
  Proceed(seq, static_cast<int>(got), window || !io_->coded() || got <= kSinkBlocks, fate);
}

void PrefillEngine::Proceed(Sequence* seq, int matched, bool window, const char* fate) {
  if (!window && fate != absl::string_view("chosen")) metrics_->window_misses.Increment();
  const int start = StartPosition(seq->num_tokens(), matched, window, options_.window_miss);
  if (start == 0) matched = 0;
  if (matched < seq->matched) {
    // More is computed than was planned, and its bf16 blocks need slots.
    const int missing = (seq->matched - matched) * kBlockTokens;
    metrics_->prefix_tokens.With({fate}).Add(missing);
    seq->matched = matched;
    if (!TakeSlots(PlanSlots(seq->num_tokens(), matched, io_->coded()), &seq->kv)) {
      seq->kv.Clear();
      planned_.push_front(seq);
      return;
    }
  }
  metrics_->prefix_tokens.With({"fetched"}).Add(start);
  metrics_->prefix_tokens.With({fate}).Add(std::min(matched * kBlockTokens, seq->num_tokens() - 1) -
                                           start);
  seq->pos = start;
  seq->result.cached_tokens = start;
  seq->fetched = Now();
  seq->result.fetch = seq->fetched - seq->started;
  metrics_->ttft_part.HistogramWith({"fetch"}).Observe(Seconds(seq->result.fetch));
  metrics_->cached.Add(start);
  ready_.push_back(seq);
}

// One chunk of one prompt, then the next prompt's turn.
bool PrefillEngine::ComputeOneChunk() {
  if (ready_.empty()) return false;
  Sequence* seq = ready_.front();
  ready_.pop_front();
  if (absl::Status status = ComputeChunk(seq); !status.ok()) {
    Finish(seq, std::move(status));
  } else if (!seq->computed) {
    ready_.push_back(seq);
  } else {
    PutHandover(seq);
    if (seq->pending_io == 0) Finish(seq, absl::OkStatus());
  }
  return true;
}

absl::Status PrefillEngine::ComputeChunk(Sequence* seq) {
  const int begin = seq->pos;
  // Chunks end at multiples of their size, wherever the prefix ended.
  const int end =
      std::min(seq->num_tokens(), (begin / options_.chunk_tokens + 1) * options_.chunk_tokens);
  std::vector<StoredBlock> complete;
  for (int b = std::max(seq->matched, BlockOf(begin)); b < BlockOf(end); ++b) {
    complete.push_back(io_->Main(seq->names, seq->kv, b));
  }
  std::shared_ptr<BlockPut> put = StartPut(seq, std::move(complete));
  PrefillChunk chunk;
  chunk.tokens = seq->tokens().subspan(begin, end - begin);
  chunk.start = begin;
  chunk.kv = &seq->kv;
  chunk.cancelled = seq->cancelled.get();
  if (put != nullptr) chunk.on_layer = [&put](int layer) { put->LayersReady(layer + 1); };
  chunk.want_logits = end == seq->num_tokens();
  const Time before = Now();
  absl::StatusOr<PrefillOutput> output = runner_->Prefill(chunk);
  const Duration took = Now() - before;
  seq->result.compute += took;
  metrics_->chunk_seconds.Observe(Seconds(took));
  if (output.ok()) fetch_policy_.Computed(begin, end, took);
  if (!output.ok()) {
    if (put != nullptr) put->Abandon();
    return output.status();
  }
  metrics_->computed.Add(end - begin);
  seq->pos = end;
  if (end < seq->num_tokens()) return absl::OkStatus();
  seq->computed = true;
  seq->compute_end = Now();
  seq->result.turns = seq->compute_end - seq->fetched;
  metrics_->ttft_part.HistogramWith({"compute"}).Observe(Seconds(seq->result.turns));
  seq->result.first_token =
      Sample(output->logits, seq->job.sampling, seq->tokens(), seq->num_tokens());
  if (seq->result.first_token.token < 0)
    return absl::InternalError("the model's logits are not numbers");
  return absl::OkStatus();
}

// The bf16 rows that decoding from here on attends beside the pages.
void PrefillEngine::PutHandover(Sequence* seq) {
  const int full = seq->num_tokens() / kBlockTokens;
  for (int b = io_->coded() ? WindowBegin(full) : full; b <= full; ++b) {
    const absl::Status status = runner_->ToHost(seq->kv, b);
    if (status.ok()) continue;
    LogWarn("the window cannot be handed over",
            {{"request", seq->job.request_id}, {"error", status.ToString()}});
    return;
  }
  std::vector<StoredBlock> blocks;
  if (io_->coded()) {
    for (int b = WindowBegin(full); b < full; ++b)
      blocks.push_back(io_->Window(seq->names, seq->kv, b));
  }
  const auto rows = seq->tokens().subspan(full * kBlockTokens);
  if (!rows.empty()) {
    ZeroTail(runner_->codec().shape(), static_cast<int>(rows.size()),
             seq->kv.pool().block(seq->kv.at(full).block));
    blocks.push_back(io_->Partial(seq->names, seq->kv, rows));
  }
  if (auto put = StartPut(seq, std::move(blocks)); put != nullptr) put->AllReady();
}

// Null: nothing to put.
std::shared_ptr<BlockPut> PrefillEngine::StartPut(Sequence* seq, std::vector<StoredBlock> blocks) {
  if (blocks.empty()) return nullptr;
  ++seq->pending_io;
  const TraceScope trace(seq->job.trace_id);
  return putter_->Start(std::move(blocks), [this, seq](PutOutcome outcome) {
    mailbox_.Post([this, seq, outcome = std::move(outcome)] { OnPut(seq, outcome); });
  });
}

void PrefillEngine::OnPut(Sequence* seq, const PutOutcome& outcome) {
  --seq->pending_io;
  for (const absl::Status& status : outcome.statuses) {
    worker_metrics_->CountPut(status);
    if (!PutOutcome::Stored(status)) ++seq->result.blocks_not_stored;
  }
  worker::AddTotals(outcome.totals, &seq->result.put);
  worker_metrics_->CountBytes({}, outcome.totals);
  if (seq->ended()) {
    Reap(seq);
  } else if (seq->computed && seq->pending_io == 0) {
    Finish(seq, absl::OkStatus());
  }
}

void PrefillEngine::Finish(Sequence* seq, absl::Status status) {
  if (seq->ended()) return;
  seq->cancelled->store(true);
  cancel_flags_.Remove(seq->id);
  metrics_->requests.With({absl::StatusCodeToString(status.code())}).Increment();
  metrics_->blocks_not_stored.Add(seq->result.blocks_not_stored);
  if (status.ok()) {
    seq->result.store = Now() - seq->compute_end;
    metrics_->ttft_part.HistogramWith({"store"}).Observe(Seconds(seq->result.store));
  }
  for (auto* list : {&queue_, &planned_, &ready_}) std::erase(*list, seq);
  --(seq->waiting ? waiting_ : running_);
  LogInfo("prefill ended", {{"request", seq->job.request_id},
                            {"trace", seq->job.trace_id},
                            {"status", absl::StatusCodeToString(status.code())},
                            {"tokens", absl::StrCat(seq->num_tokens())},
                            {"cached", absl::StrCat(seq->result.cached_tokens)},
                            {"not_stored", absl::StrCat(seq->result.blocks_not_stored)},
                            {"seconds", absl::StrCat(Seconds(Now() - seq->arrived))}});
  auto done = std::exchange(seq->done, nullptr);
  if (status.ok()) {
    done(std::move(seq->result));
  } else {
    done(std::move(status));
  }
  Reap(seq);
}

void PrefillEngine::Reap(Sequence* seq) {
  if (seq->pending_io == 0) sequences_.erase(seq->id);
}

void PrefillEngine::Publish() {
  metrics_->queue_depth.Set(waiting_);
  metrics_->queue_age.Set(queue_.empty() ? 0 : Seconds(Now() - queue_.front()->arrived));
  metrics_->running.Set(running_);
  worker_metrics_->SetPool(io_->arena().pool());
}

}  // namespace oscarkv
