// A sequence being decoded: its tokens, its KV and what is under way for it. Lives on the engine's
// thread.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/kv_pool.h"
#include "model/model_config.h"
#include "model/sampler.h"
#include "worker/block_io.h"
#include "worker/cancel_flags.h"

namespace oscarkv {

enum class StopReason { kNone, kStopToken, kLength, kContext };

struct DecodeJob {
  std::string request_id;
  std::vector<int32_t> tokens;  // prompt and answer so far; the last one has no K and V yet
  int prompt_tokens = 0;
  SamplingParams sampling;
  int max_tokens = 0;  // of the whole answer
  std::vector<int32_t> stop_tokens;
  std::string tenant;
  Time deadline;
  std::string trace_id = {};  // for logs; empty: none
};

// kInvalidArgument names the field, its value and what is allowed.
absl::Status CheckJob(const DecodeJob& job, const ModelConfig& config);

struct DecodeResult {
  StopReason reason = StopReason::kNone;
  TransferTotals get, put;
  int recomputed_tokens = 0;
  int preemptions = 0;
  uint64_t kv_bytes_stored =
      0;  // of the sequence at its end: pages, and bf16 rows of sink and window
  uint64_t kv_bytes_bf16 = 0;  // the same tokens in bf16
};

// How long it took until a sequence had its KV, one after the other.
struct LoadTimes {
  Duration queue{0};  // waiting for slots
  Duration fetch{0};
  Duration recompute{0};
};

// Called from the engine's thread; must not block. on_done comes exactly once and last.
struct DecodeEvents {
  std::function<void(const SampledToken&)> on_token;
  std::function<void()> on_alive;  // may be empty; while there are no tokens
  std::function<void(const absl::Status&, const DecodeResult&)> on_done;
  // May be empty; once, when the sequence first joins the batch.
  std::function<void(const LoadTimes&)> on_loaded = {};
};

enum class DecodeState {
  kWaiting,      // no slots
  kLoading,      // slots; an I/O thread fetches
  kRecomputing,  // `missing` blocks are computed, chunk by chunk
  kRunning,      // in the batch
  kEvicting,     // preempted; slots go when its hand-over blocks are put
  kEnded,        // answered; slots go when no transfer uses them
};

struct DecodeSequence {
  DecodeSequence(uint64_t id, DecodeJob job, DecodeEvents events, worker::ChainNames names,
                 KvPool* pool, worker::CancelFlag cancelled, Time now);

  // Of the last token: where the next step writes. Tokens before it have K and V once the sequence
  // runs.
  int position() const { return static_cast<int>(tokens.size()) - 1; }
  int block() const { return BlockOf(position()); }       // that is being filled
  int rows() const { return position() % kBlockTokens; }  // it has
  int window() const { return FirstWindowBlock(position()); }
  absl::Span<const int32_t> computed() const {
    return absl::MakeConstSpan(tokens).first(position());
  }
  absl::Span<const int32_t> partial_rows() const {
    return computed().subspan(block() * kBlockTokens);
  }
  bool holds_slots() const { return state != DecodeState::kWaiting; }
  // Goes back to `new_position`, at or behind the end of the prompt: the tokens behind the next one
  // become `replay`.
  void Rewind(int new_position);
  // Whether the last token ends the answer.
  StopReason Stop(int max_context) const;
  // Fills kv_bytes_* of `result`.
  void Measure(bool coded);

  const uint64_t id;  // grows with arrival
  const DecodeJob job;
  DecodeEvents events;
  std::vector<int32_t> tokens;
  // Tokens of the answer that follow `tokens`: known already, but not all that is before them has
  // K and V. Decode steps take them one by one instead of sampling.
  std::deque<int32_t> replay;
  worker::ChainNames names;
  SequenceKv kv;
  DecodeState state = DecodeState::kWaiting;
  const worker::CancelFlag
      cancelled;  // by the client; for the runner, which cannot hear the mailbox
  worker::CancelFlag load_cancelled;  // for the I/O thread that fetches; renewed at every load
  int pending_io = 0;
  int puts_in_flight = 0;
  std::set<int> window_puts;   // blocks whose bf16 slot a put is reading
  std::vector<int> missing;    // ascending: blocks to compute before it may run
  std::vector<int> held;       // of these, done, whose bf16 rows the next ones attend
  int released = kSinkBlocks;  // bf16 slots of coded blocks before this one were given back
  int generated = 0;           // tokens chosen here
  DecodeResult result;
  LoadTimes load;
  bool loaded = false;  // once
  Time arrived, phase_start, last_event;
};

// The slots with which a sequence at `position` starts: a bf16 slot for the sink and every block
// from `first_bf16` to `block`, a page for each of the blocks [1, 1 + num_pages).
struct DecodeSlots {
  int first_bf16 = 0;
  int block = 0;
  int num_pages = 0;
  int bf16_slots() const { return block - first_bf16 + 1 + (first_bf16 > 0 ? 1 : 0); }
};
DecodeSlots PlanDecodeSlots(int position, bool coded);
// False: the pool is full; `kv` keeps what it got.
bool TakeDecodeSlots(const DecodeSlots& plan, SequenceKv* kv);

// What a sequence needs from the store, and how its block is used.
struct LoadItem {
  enum class Form { kMain, kWindow, kPartial };
  int block;
  Form form;
};
std::vector<LoadItem> PlanLoad(const DecodeSequence& seq, bool coded);

// What the outcomes of a load mean, per block: `compute`: it must be computed; `encode`: its bf16
// rows came, its page did not.
struct LoadVerdict {
  std::vector<int> compute;
  std::vector<int> encode;
};
LoadVerdict JudgeLoad(absl::Span<const LoadItem> items, absl::Span<const absl::Status> statuses);

// Where a sequence whose blocks `missing` (ascending) have to be computed goes back to, see
// attention_load.cc; its position: it need not. `deterministic`: however far that is.
int ReplayStart(const DecodeSequence& seq, absl::Span<const int> missing, bool deterministic);

// A block is computed to the bit only from the bf16 rows of the four blocks before it, and those in
// turn: adds to `missing` (ascending) what that takes when only the blocks from `window` on are
// loaded with their bf16 rows.
void AddWhatItTakes(int window, std::vector<int>* missing);

}  // namespace oscarkv
