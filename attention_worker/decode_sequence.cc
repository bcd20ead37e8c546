#include "attention_worker/decode_sequence.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/request_check.h"

namespace oscarkv {
namespace {
constexpr int kMaxStopTokens = 1024;
// The tokens of the block that was being filled, and of one whose put had not ended.
constexpr int kMaxReplay = 2 * kBlockTokens;
}  // namespace

absl::Status CheckJob(const DecodeJob& job, const ModelConfig& config) {
  RETURN_IF_ERROR(
      worker::CheckTokens(job.tokens, config.vocab_size, config.max_position_embeddings));
  RETURN_IF_ERROR(ValidateSampling(job.sampling));
  RETURN_IF_ERROR(worker::CheckName("request_id", job.request_id));
  RETURN_IF_ERROR(worker::CheckName("tenant", job.tenant));
  if (job.prompt_tokens < 1 || job.prompt_tokens > static_cast<int>(job.tokens.size())) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_tokens: ", job.prompt_tokens, "; 1..",
                                                   job.tokens.size(),
                                                   " (the tokens given) are allowed"));
  }
  if (job.max_tokens < 1) return absl::InvalidArgumentError("max_tokens: 0; at least 1 is needed");
  if (job.stop_tokens.size() > kMaxStopTokens) {
    return absl::InvalidArgumentError(absl::StrCat("stop_tokens: ", job.stop_tokens.size(),
                                                   " of them; at most ", kMaxStopTokens,
                                                   " are allowed"));
  }
  return absl::OkStatus();
}

DecodeSequence::DecodeSequence(uint64_t id, DecodeJob job_in, DecodeEvents events,
                               worker::ChainNames names, KvPool* pool, worker::CancelFlag cancelled,
                               Time now)
    : id(id),
      job(std::move(job_in)),
      events(std::move(events)),
      tokens(job.tokens),
      names(std::move(names)),
      kv(pool),
      cancelled(std::move(cancelled)),
      arrived(now),
      phase_start(now),
      last_event(now) {}

void DecodeSequence::Rewind(int new_position) {
  replay.insert(replay.begin(), tokens.begin() + new_position + 1, tokens.end());
  tokens.resize(new_position + 1);
  names = names.Fresh();
  names.Extend(computed());
}

StopReason DecodeSequence::Stop(int max_context) const {
  const int answered = static_cast<int>(tokens.size()) - job.prompt_tokens;
  if (answered > 0) {
    const auto& stops = job.stop_tokens;
    if (std::find(stops.begin(), stops.end(), tokens.back()) != stops.end())
      return StopReason::kStopToken;
    if (answered >= job.max_tokens) return StopReason::kLength;
  }
  return static_cast<int>(tokens.size()) >= max_context ? StopReason::kContext : StopReason::kNone;
}

void DecodeSequence::Measure(bool coded) {
  const kernels::KvShape& shape = kv.pool().shape();
  const uint64_t token_bytes = shape.Bf16BlockBytes() / kBlockTokens;
  const int coded_blocks = coded ? std::max(0, window() - kSinkBlocks) : 0;
  const uint64_t bf16_tokens = position() - coded_blocks * kBlockTokens;
  result.kv_bytes_stored = coded_blocks * shape.PageBytes() + bf16_tokens * token_bytes;
  result.kv_bytes_bf16 = position() * token_bytes;
}

DecodeSlots PlanDecodeSlots(int position, bool coded) {
  DecodeSlots plan;
  plan.block = BlockOf(position);
  plan.first_bf16 = coded ? std::min(FirstWindowBlock(position), plan.block) : 0;
  plan.num_pages = coded ? std::max(0, plan.block - kSinkBlocks) : 0;
  return plan;
}

bool TakeDecodeSlots(const DecodeSlots& plan, SequenceKv* kv) {
  if (!kv->EnsureBlock(0)) return false;
  for (int b = std::max(1, plan.first_bf16); b <= plan.block; ++b) {
    if (!kv->EnsureBlock(b)) return false;
  }
  for (int b = kSinkBlocks; b < kSinkBlocks + plan.num_pages; ++b) {
    if (!kv->EnsurePage(b)) return false;
  }
  return true;
}

std::vector<LoadItem> PlanLoad(const DecodeSequence& seq, bool coded) {
  std::vector<LoadItem> items;
  for (int b = 0; b < seq.block(); ++b) items.push_back({b, LoadItem::Form::kMain});
  for (int b = seq.window(); coded && b < seq.block(); ++b)
    items.push_back({b, LoadItem::Form::kWindow});
  if (seq.rows() > 0) items.push_back({seq.block(), LoadItem::Form::kPartial});
  return items;
}

LoadVerdict JudgeLoad(absl::Span<const LoadItem> items, absl::Span<const absl::Status> statuses) {
  struct Forms {
    bool main = true, window = true, partial = true, has_window = false;
  };
  std::map<int, Forms> blocks;
  for (size_t i = 0; i < items.size(); ++i) {
    Forms& forms = blocks[items[i].block];
    const bool ok = statuses[i].ok();
    switch (items[i].form) {
      case LoadItem::Form::kMain:
        forms.main = ok;
        break;
      case LoadItem::Form::kWindow:
        forms.window = ok;
        forms.has_window = true;
        break;
      case LoadItem::Form::kPartial:
        forms.partial = ok;
        break;
    }
  }
  LoadVerdict verdict;
  for (const auto& [b, forms] : blocks) {
    if (!forms.window || !forms.partial || (!forms.main && !forms.has_window)) {
      verdict.compute.push_back(b);
    } else if (!forms.main) {
      verdict.encode.push_back(b);
    }
  }
  return verdict;
}

int ReplayStart(const DecodeSequence& seq, absl::Span<const int> missing, bool deterministic) {
  if (deterministic) {
    for (const int b : missing) {
      if ((b + 1) * kBlockTokens <= seq.job.prompt_tokens) continue;
      return std::min(std::max(b * kBlockTokens, seq.job.prompt_tokens), seq.position());
    }
    return seq.position();
  }
  if (missing.empty() || missing.back() != seq.block()) return seq.position();
  size_t first = missing.size() - 1;
  while (first > 0 && missing[first - 1] == missing[first] - 1) --first;
  const int start = std::max(missing[first] * kBlockTokens, seq.job.prompt_tokens);
  return seq.position() - start <= kMaxReplay ? std::min(start, seq.position()) : seq.position();
}

void AddWhatItTakes(int window, std::vector<int>* missing) {
  int last = 0;  // missing block that attends rows of a block before the window
  for (const int b : *missing) {
    if (FirstWindowBlock(b * kBlockTokens) < window) last = b;
  }
  for (int b = kSinkBlocks; b < std::min(window, last); ++b) missing->push_back(b);
  std::sort(missing->begin(), missing->end());
  missing->erase(std::unique(missing->begin(), missing->end()), missing->end());
}

}  // namespace oscarkv
