// What every runner demands of a chunk or a batch, whatever it computes on, and which slots the
// queries of a decode step attend.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "codec/codec.h"
#include "model/model_runner.h"

namespace oscarkv {

// The codec is the model's, and the shape one that the kernels have.
absl::Status CheckOptions(const ModelConfig& config, const KvCodec& codec,
                          const TransformerOptions& options);

// Tokens and positions of a chunk.
absl::Status CheckChunk(const ModelConfig& config, const PrefillChunk& chunk);
// Its slots: those that it writes, and those of the blocks before it.
absl::Status CheckSlots(const KvCodec& codec, PrefillHistory history, const PrefillChunk& chunk);
// Tokens, positions and pools of a batch, which is not empty.
absl::Status CheckBatch(const ModelConfig& config, const KvCodec& codec,
                        absl::Span<const DecodeInput> batch);

// The token at `position` is the last one of a block that gets a page.
inline bool CompletesPage(bool coded, int position) {
  return coded && position % kBlockTokens == kBlockTokens - 1 && BlockOf(position) >= kSinkBlocks;
}

// Which slots each sequence of a batch attends, the same in every layer: the lists of
// PagedAttentionArgs.
struct AttendedSlots {
  std::vector<int32_t> pages, page_begin{0}, blocks, block_begin{0}, last_tokens;
};
// Adds the slots that the query of `input`, sequence `index` of the batch, attends.
// kFailedPrecondition: it lacks one, or the page slot of the block that it completes.
absl::Status AddSlots(bool coded, size_t index, const DecodeInput& input, AttendedSlots* to);

}  // namespace oscarkv
