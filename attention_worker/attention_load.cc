// From a sequence's tokens to slots that hold their K and V: fetched, and where the store does not
// have them, computed.
//
// What is missing can be computed in two ways. A prefill computes 64 positions at a time. But the
// rows of answer tokens were made by decode steps, and a prefill makes them with other sums: equal
// up to rounding, which once in a while is a code that flips, and then a token that differs. So
// answer tokens are replayed: the sequence goes back (Rewind) to the last position up to which the
// store has what it needs, and takes the known tokens by decode steps again, as one of the batch,
// until it is where it was. It then holds the bits that the former worker held (as far as the
// products' rows do not depend on the batch). A worker that died had put all full blocks but
// perhaps the last, so the replay is short. Where more is missing than kMaxReplay the store has
// lost something: prefill does it.
//
// Going back within the block being filled needs nothing but its rows before that position: none,
// or the prompt's last ones, which prefill had put. Going back into an earlier block changes the
// window, and with it the slots: then all of it is given back and loaded anew.
#include <utility>

#include "attention_worker/attention_engine.h"
#include "common/status_macros.h"
#include "common/trace.h"

namespace oscarkv {

using worker::StoredBlock;

namespace {
double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}
}  // namespace

void AttentionEngine::Load(Sequence* seq) {
  seq->state = DecodeState::kLoading;
  seq->released = std::max(kSinkBlocks, seq->window());
  seq->names.Extend(seq->computed());
  Fetch(seq, PlanLoad(*seq, io_->coded()));
}

void AttentionEngine::Fetch(Sequence* seq, std::vector<LoadItem> items) {
  if (items.empty()) return Run(seq);
  std::vector<StoredBlock> blocks;
  blocks.reserve(items.size());
  for (const LoadItem& item : items) {
    switch (item.form) {
      case LoadItem::Form::kMain:
        blocks.push_back(io_->Main(seq->names, seq->kv, item.block));
        break;
      case LoadItem::Form::kWindow:
        blocks.push_back(io_->Window(seq->names, seq->kv, item.block));
        break;
      case LoadItem::Form::kPartial:
        blocks.push_back(io_->Partial(seq->names, seq->kv, seq->partial_rows()));
        break;
    }
  }
  seq->load_cancelled = std::make_shared<std::atomic<bool>>(false);
  ++seq->pending_io;
  fetch_pool_->Post([this, seq, items = std::move(items), blocks = std::move(blocks),
                     cancelled = seq->load_cancelled] {
    const TraceScope trace(seq->job.trace_id);
    TransferTotals totals;
    auto statuses = io_->Fetch(blocks, *cancelled, &totals);
    mailbox_.Post([this, seq, items, statuses = std::move(statuses), totals] {
      OnLoaded(seq, items, statuses, totals);
    });
  });
}

void AttentionEngine::OnLoaded(Sequence* seq, const std::vector<LoadItem>& items,
                               const std::vector<absl::Status>& statuses,
                               const TransferTotals& totals) {
  --seq->pending_io;
  worker::AddTotals(totals, &seq->result.get);
  worker_metrics_->CountBytes(totals, {});
  if (seq->state != DecodeState::kLoading)
    return Settle(seq);  // it ended or was preempted meanwhile
  for (const absl::Status& status : statuses) worker_metrics_->CountGet(status);
  EndLoadPart(seq, "fetch", &seq->load.fetch);

  LoadVerdict verdict = JudgeLoad(items, statuses);
  for (int b : verdict.encode) {
    if (const absl::Status status = EncodePage(seq, b); !status.ok())
      return Finish(seq, status, StopReason::kNone);
  }
  PutBlocks(seq, verdict.encode, {}, /*partial=*/false);
  if (GoBack(seq, &verdict.compute)) return;
  seq->missing.insert(seq->missing.end(), verdict.compute.begin(), verdict.compute.end());
  if (seq->missing.empty()) return Run(seq);
  if (io_->deterministic() && io_->coded()) AddWhatItTakes(seq->window(), &seq->missing);
  seq->state = DecodeState::kRecomputing;
  recomputing_[seq->id] = seq;
}

// True: the sequence was rewound, and another load is under way or will be.
bool AttentionEngine::GoBack(Sequence* seq, std::vector<int>* missing) {
  const int start = ReplayStart(*seq, *missing, io_->deterministic());
  if (start == seq->position()) return false;
  const int block = seq->block();
  seq->Rewind(start);
  if (seq->block() < block) {
    seq->state = DecodeState::kEvicting;
    Settle(seq);
    return true;
  }
  missing->pop_back();
  if (seq->rows() == 0) return false;
  seq->missing = std::move(*missing);
  Fetch(seq, {{seq->block(), LoadItem::Form::kPartial}});
  return true;
}

// The page of a window block is made from the same rows that its bf16 copy holds.
absl::Status AttentionEngine::EncodePage(Sequence* seq, int b) {
  const KvPool& pool = seq->kv.pool();
  for (int layer = 0; layer < pool.shape().num_layers; ++layer) {
    RETURN_IF_ERROR(runner_->codec().EncodeLayer(layer,
                                                 pool.block_layer(seq->kv.at(b).block, layer),
                                                 pool.page_layer(seq->kv.at(b).page, layer)));
  }
  return absl::OkStatus();
}

void AttentionEngine::EndLoadPart(Sequence* seq, const char* part, Duration* total) {
  const Duration took = Now() - seq->phase_start;
  metrics_->load_part.HistogramWith({part}).Observe(Seconds(took));
  *total += took;
  seq->phase_start += took;
}

void AttentionEngine::Run(Sequence* seq) {
  seq->state = DecodeState::kRunning;
  running_[seq->id] = seq;
  if (std::exchange(seq->loaded, true)) return;  // it was preempted since
  if (seq->events.on_loaded) seq->events.on_loaded(seq->load);
}

}  // namespace oscarkv
