#include "model/runner_input.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

absl::Status Missing(int block, absl::string_view what, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("block ", block, " has no ", what, " slot: ", why));
}

BlockSlots SlotsOf(const SequenceKv& kv, int block) {
  return block < kv.num_blocks() ? kv.at(block) : BlockSlots();
}

absl::Status InSequence(size_t i, absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat("sequence ", i, " of the batch: ", what));
}

// The codec's shape is the model's, and says what a page is.
absl::Status CheckPool(const KvCodec& codec, const SequenceKv* kv) {
  if (kv == nullptr) return absl::InvalidArgumentError("a sequence has no SequenceKv");
  if (!(kv->pool().shape() == codec.shape())) {
    return absl::FailedPreconditionError("the KV pool's shape is not the model's");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> ParseDevice(absl::string_view device) {
  int ordinal = -1;
  if (device == "cpu") return ordinal;
  absl::string_view rest = device;
  // SimpleAtoi would take blanks and a sign.
  if (absl::ConsumePrefix(&rest, "cuda:") && !rest.empty() &&
      rest.find_first_not_of("0123456789") == absl::string_view::npos &&
      absl::SimpleAtoi(rest, &ordinal))
    return ordinal;
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", device, "\": expected cpu or cuda:N, for example cuda:0"));
}

absl::Status CheckOptions(const ModelConfig& config, const KvCodec& codec,
                          const TransformerOptions& options) {
  if (options.threads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, "; expected at least 1"));
  }
  const kernels::KvShape model = config.kv_shape(), coded = codec.shape();
  if (model.num_layers != coded.num_layers || model.num_kv_heads != coded.num_kv_heads ||
      model.head_dim != coded.head_dim) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the model has ", model.num_layers, " layers, ", model.num_kv_heads, " kv heads, head_dim ",
        model.head_dim, "; the codec (", codec.Describe(), ") was made for ", coded.num_layers,
        ", ", coded.num_kv_heads, ", ", coded.head_dim));
  }
  if (!kernels::IsSupportedHeadDim(config.head_dim)) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim is ", config.head_dim, "; supported: 64, 128"));
  }
  if (config.num_heads % config.num_kv_heads != 0 ||
      config.num_heads / config.num_kv_heads > kernels::kMaxGroup) {
    return absl::UnimplementedError(absl::StrCat(config.num_heads, " query heads over ",
                                                 config.num_kv_heads, " kv heads; supported: 1 to ",
                                                 kernels::kMaxGroup, " per kv head"));
  }
  return absl::OkStatus();
}

absl::Status CheckChunk(const ModelConfig& config, const PrefillChunk& chunk) {
  if (chunk.tokens.empty()) return absl::InvalidArgumentError("prefill of no tokens");
  if (chunk.start < 0)
    return absl::InvalidArgumentError(absl::StrCat("prefill starts at position ", chunk.start));
  if (chunk.tokens.size() > static_cast<size_t>(config.max_position_embeddings) ||
      chunk.start > config.max_position_embeddings - static_cast<int>(chunk.tokens.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("positions ", chunk.start, " to ", chunk.start + chunk.tokens.size() - 1,
                     " are beyond the model's context of ", config.max_position_embeddings));
  }
  for (size_t i = 0; i < chunk.tokens.size(); ++i) {
    if (chunk.tokens[i] < 0 || chunk.tokens[i] >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", chunk.tokens[i], " at position ", chunk.start + i,
                       " is outside the vocabulary of ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSlots(const KvCodec& codec, PrefillHistory history, const PrefillChunk& chunk) {
  RETURN_IF_ERROR(CheckPool(codec, chunk.kv));
  const bool coded = codec.profile() != Profile::kBf16;
  const int end = chunk.start + static_cast<int>(chunk.tokens.size());
  const int history_end =
      coded && history == PrefillHistory::kCanonical ? FirstWindowBlock(end - 1) : kSinkBlocks;
  for (int b = 0; b <= BlockOf(end - 1); ++b) {
    const BlockSlots slots = SlotsOf(*chunk.kv, b);
    const bool paged = coded && b >= kSinkBlocks,
               whole_before = (b + 1) * kBlockTokens <= chunk.start;
    if (whole_before) {
      if (slots.block < 0 && !paged)
        return Missing(b, "bf16", "it precedes the chunk and is never encoded");
      if (slots.block < 0 && slots.page < 0)
        return Missing(b, "bf16 or page", "it precedes the chunk");
      if (slots.page < 0 && b >= kSinkBlocks && b < history_end)
        return Missing(b, "page", "it is attended as its codes");
    } else {
      if (slots.block < 0) return Missing(b, "bf16", "the chunk writes it");
      if (slots.page < 0 && paged && (b + 1) * kBlockTokens <= end)
        return Missing(b, "page", "the chunk completes it");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(const ModelConfig& config, const KvCodec& codec,
                        absl::Span<const DecodeInput> batch) {
  for (size_t i = 0; i < batch.size(); ++i) {
    const DecodeInput& in = batch[i];
    RETURN_IF_ERROR(CheckPool(codec, in.kv));
    if (&in.kv->pool() != &batch[0].kv->pool())
      return InSequence(i, "lies in another KV pool than the first");
    if (in.position < 0 || in.position >= config.max_position_embeddings) {
      return absl::InvalidArgumentError(absl::StrCat("position ", in.position,
                                                     " is outside the model's context of ",
                                                     config.max_position_embeddings));
    }
    if (in.token < 0 || in.token >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", in.token, " at position ",
                                                     in.position, " is outside the vocabulary of ",
                                                     config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status AddSlots(bool coded, size_t index, const DecodeInput& input, AttendedSlots* to) {
  const SequenceKv& kv = *input.kv;
  const int last = BlockOf(input.position);
  const int window = coded ? FirstWindowBlock(input.position) : kSinkBlocks;
  for (int block = 0; block <= last; ++block) {
    const bool as_page = block >= kSinkBlocks && block < window;
    const BlockSlots slots = SlotsOf(kv, block);
    const int32_t id = as_page ? slots.page : slots.block;
    if (id < 0) {
      return InSequence(index,
                        absl::StrCat("block ", block, " has no slot to attend from at position ",
                                     input.position));
    }
    (as_page ? to->pages : to->blocks).push_back(id);
  }
  to->page_begin.push_back(static_cast<int32_t>(to->pages.size()));
  to->block_begin.push_back(static_cast<int32_t>(to->blocks.size()));
  to->last_tokens.push_back(input.position % kBlockTokens + 1);
  if (CompletesPage(coded, input.position) && kv.at(last).page < 0)
    return InSequence(index, absl::StrCat("block ", last, " gets full and has no page slot"));
  return absl::OkStatus();
}

}  // namespace oscarkv
