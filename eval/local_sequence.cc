#include "eval/local_sequence.h"

#include "common/status_macros.h"

namespace oscarkv {

LocalSequence::LocalSequence(const ModelRunner& runner, int tokens)
    : pages_(runner.codec().profile() != Profile::kBf16) {
  const kernels::KvShape shape = runner.codec().shape();
  const size_t n = static_cast<size_t>(tokens) / kBlockTokens + 1;
  const size_t pages = n * shape.PageBytes(), blocks = n * shape.Bf16BlockBytes();
  memory_.reset(
      static_cast<uint8_t*>(std::aligned_alloc(4096, (pages + blocks + 4095) / 4096 * 4096)));
  pool_ = std::make_unique<KvPool>(shape, absl::MakeSpan(memory_.get(), pages),
                                   absl::MakeSpan(memory_.get() + pages, blocks));
  kv_ = std::make_unique<SequenceKv>(pool_.get());
}

absl::Status LocalSequence::EnsureSlots(int start, int end) {
  for (int b = BlockOf(start); b <= BlockOf(end - 1); ++b) {
    if (!kv_->EnsureBlock(b) || (pages_ && b >= kSinkBlocks && !kv_->EnsurePage(b))) {
      return absl::ResourceExhaustedError("the local pool is too small for this sequence");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PrefillOutput> LocalSequence::Prefill(ModelRunner& runner,
                                                     absl::Span<const int32_t> tokens, int start,
                                                     PrefillChunk chunk) {
  RETURN_IF_ERROR(EnsureSlots(start, start + static_cast<int>(tokens.size())));
  chunk.tokens = tokens;
  chunk.start = start;
  chunk.kv = kv_.get();
  return runner.Prefill(chunk);
}

}  // namespace oscarkv
