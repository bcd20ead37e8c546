// One turn's work on the sequences: recompute a chunk, decode a step, make room.
//
// Who yields. Slots run short only when a sequence grows: it enters a new block, completes a page,
// or recomputes. Then the youngest sequence that holds slots gives up all of them. The oldest never
// yields to another, so it ends some day, and then the next one is the oldest: no two sequences can
// evict each other for ever.
#include <algorithm>
#include <utility>

#include "attention_worker/attention_engine.h"

namespace oscarkv {
namespace {
double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}
}  // namespace

// Sequences take turns, so that none waits for the whole recomputation of another.
bool AttentionEngine::RecomputeOneChunk() {
  if (recomputing_.empty()) return false;
  auto it = recomputing_.upper_bound(last_recomputed_);
  if (it == recomputing_.end()) it = recomputing_.begin();
  Sequence* seq = it->second;
  last_recomputed_ = seq->id;
  int count = TakeRecomputeSlots(seq);
  while (count == 0 && MakeRoom(seq)) count = TakeRecomputeSlots(seq);
  if (count == 0) return false;
  if (const absl::Status status = Recompute(seq, count); !status.ok())
    Finish(seq, status, StopReason::kNone);
  return true;
}

int AttentionEngine::TakeRecomputeSlots(Sequence* seq) {
  const int most = std::min<int>(options_.chunk_tokens / kBlockTokens, seq->missing.size());
  int count = 0;
  while (count < most && seq->missing[count] == seq->missing[0] + count &&
         seq->kv.EnsureBlock(seq->missing[count]))
    ++count;
  return count;
}

// The first `count` missing blocks, which are neighbours.
absl::Status AttentionEngine::Recompute(Sequence* seq, int count) {
  const int first = seq->missing[0];
  const int begin = first * kBlockTokens;
  const int end = std::min((first + count) * kBlockTokens, seq->position());
  PrefillChunk chunk;
  chunk.tokens = seq->computed().subspan(begin, end - begin);
  chunk.start = begin;
  chunk.kv = &seq->kv;
  chunk.cancelled = seq->cancelled.get();
  auto output = runner_->Prefill(chunk);
  if (!output.ok()) return output.status();
  seq->result.recomputed_tokens += end - begin;
  metrics_->recomputed_tokens.Add(end - begin);
  seq->missing.erase(seq->missing.begin(), seq->missing.begin() + count);

  std::vector<int> mains, windows;
  for (int b = first; b < BlockOf(end); ++b) {
    mains.push_back(b);
    if (io_->IsPage(b) && b >= seq->window()) windows.push_back(b);
  }
  PutBlocks(seq, mains, windows, /*partial=*/false);
  // Rows before the window go when no block that is still missing attends them.
  const int attended =
      seq->missing.empty() ? seq->window() : FirstWindowBlock(seq->missing[0] * kBlockTokens);
  for (int b : mains) {
    if (io_->IsPage(b) && b < seq->window()) seq->held.push_back(b);
  }
  std::erase_if(seq->held, [&](int b) {
    if (b < attended) seq->kv.ReleaseBlock(b);
    return b < attended;
  });
  if (seq->missing.empty()) {
    recomputing_.erase(seq->id);
    EndLoadPart(seq, "recompute", &seq->load.recompute);
    Run(seq);
  }
  return absl::OkStatus();
}

bool AttentionEngine::Step() {
  std::vector<Sequence*> batch;
  for (auto it = running_.begin(); it != running_.end();) {
    const auto [id, seq] = *it;
    ReleaseLeftWindow(seq);
    bool ready = TakeStepSlots(seq);
    while (!ready && MakeRoom(seq)) ready = TakeStepSlots(seq);
    if (ready) batch.push_back(seq);
    it = running_.upper_bound(id);  // MakeRoom may have taken it, and younger ones, out
  }
  if (batch.empty()) return false;
  const Time before = Now();
  metrics_->batch_size.Observe(static_cast<double>(batch.size()));
  RunBatch(batch);
  metrics_->step_seconds.Observe(Seconds(Now() - before));
  return true;
}

bool AttentionEngine::TakeStepSlots(Sequence* seq) {
  const int b = seq->block();
  if (!seq->kv.EnsureBlock(b)) return false;
  const bool completes = seq->rows() == kBlockTokens - 1;
  return !completes || !io_->IsPage(b) || seq->kv.EnsurePage(b);
}

void AttentionEngine::ReleaseLeftWindow(Sequence* seq) {
  if (!io_->coded()) return;
  while (seq->released < std::min(seq->window(), seq->block()) &&
         !seq->window_puts.contains(seq->released)) {
    seq->kv.ReleaseBlock(seq->released++);
  }
}

void AttentionEngine::RunBatch(absl::Span<Sequence* const> batch) {
  std::vector<DecodeInput> inputs;
  inputs.reserve(batch.size());
  for (Sequence* seq : batch) inputs.push_back({seq->tokens.back(), seq->position(), &seq->kv});
  const absl::Status status = runner_->DecodeStep(inputs, &logits_);
  if (status.ok()) {
    const size_t vocab = runner_->config().vocab_size;
    for (size_t i = 0; i < batch.size(); ++i)
      Accept(batch[i], absl::MakeConstSpan(logits_).subspan(i * vocab, vocab));
  } else if (batch.size() == 1) {
    Finish(batch[0], status, StopReason::kNone);
  } else {
    // One sequence must not take the others with it. Running them alone writes the same rows again.
    for (Sequence* seq : batch) RunBatch({seq});
  }
}

// The step of `seq` is done: its last token has K and V now, and the next one is chosen.
void AttentionEngine::Accept(Sequence* seq, absl::Span<const float> logits) {
  const int next = seq->position() + 1;
  const bool replayed = !seq->replay.empty();
  SampledToken sampled;
  if (replayed) {
    sampled.token = seq->replay.front();
    seq->replay.pop_front();
    ++seq->result.recomputed_tokens;
    metrics_->recomputed_tokens.Increment();
  } else {
    sampled = Sample(logits, seq->job.sampling, seq->tokens, next);
    if (sampled.token < 0)
      return Finish(seq, absl::InternalError("the model's logits are not numbers"),
                    StopReason::kNone);
    ++seq->generated;
    metrics_->tokens.Increment();
  }
  seq->tokens.push_back(sampled.token);
  if (next % kBlockTokens == 0) {
    const int full = BlockOf(next) - 1;
    seq->names.Extend(seq->computed());
    std::vector<int> windows;
    if (io_->IsPage(full)) windows.push_back(full);
    PutBlocks(seq, {full}, windows, /*partial=*/false);
  }
  if (replayed) return;
  seq->last_event = Now();
  seq->events.on_token(sampled);
  const StopReason reason = seq->Stop(runner_->config().max_position_embeddings);
  if (reason != StopReason::kNone) Finish(seq, absl::OkStatus(), reason);
}

bool AttentionEngine::MakeRoom(Sequence* seq) {
  // Its own slots come back when the put that reads them ends.
  if (seq->released < seq->window() && seq->window_puts.contains(seq->released)) return false;
  Sequence* youngest = seq;
  for (const auto& [id, other] : sequences_) {
    if (other->state == DecodeState::kEvicting || other->state == DecodeState::kEnded)
      return false;  // slots are on their way
    if (other->holds_slots() && id > youngest->id) youngest = other.get();
  }
  const bool alone = sequences_.size() == waiting_.size() + 1;
  if (alone) {
    Finish(seq, absl::ResourceExhaustedError("the sequence has outgrown this worker's KV pools"),
           StopReason::kNone);
    return false;
  }
  Preempt(youngest);
  return youngest != seq && youngest->state == DecodeState::kWaiting;
}

void AttentionEngine::Preempt(Sequence* seq) {
  ++seq->result.preemptions;
  metrics_->preemptions.Increment();
  Evict(seq);
}

void AttentionEngine::Evict(Sequence* seq) {
  if (seq->load_cancelled != nullptr) seq->load_cancelled->store(true);
  recomputing_.erase(seq->id);
  const bool ran = running_.erase(seq->id) > 0;
  seq->state = DecodeState::kEvicting;
  if (ran) {
    std::vector<int> windows;
    for (int b = seq->window(); io_->coded() && b < seq->block(); ++b) {
      if (!seq->window_puts.contains(b)) windows.push_back(b);
    }
    const bool partial = seq->rows() > 0;
    // Before the tail is zeroed, for it brings the whole block; where it fails, so will PutBlocks.
    if (partial && runner_->ToHost(seq->kv, seq->block()).ok()) {
      ZeroTail(seq->kv.pool().shape(), seq->rows(),
               seq->kv.pool().block(seq->kv.at(seq->block()).block));
    }
    PutBlocks(seq, {}, windows, partial);
  }
  Settle(seq);
}

void AttentionEngine::Evicted(Sequence* seq) {
  seq->kv.Clear();
  seq->missing.clear();
  seq->held.clear();
  seq->phase_start = Now();
  seq->state = DecodeState::kWaiting;
  waiting_[seq->id] = seq;
  slots_freed_ = true;
  if (MustHandOver()) HandOver(seq);
}

}  // namespace oscarkv
