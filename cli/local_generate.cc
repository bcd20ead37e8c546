#include "cli/local_generate.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "codec/codec.h"
#include "common/status_macros.h"
#include "model/kv_pool.h"

namespace oscarkv::cli {
namespace {

// Memory for the blocks of one sequence of `tokens` tokens.
struct LocalPool {
  LocalPool(const kernels::KvShape& shape, int tokens) {
    const size_t n = static_cast<size_t>(tokens) / kBlockTokens + 1;
    const size_t pages = n * shape.PageBytes(), blocks = n * shape.Bf16BlockBytes();
    memory.reset(
        static_cast<uint8_t*>(std::aligned_alloc(4096, (pages + blocks + 4095) / 4096 * 4096)));
    pool = std::make_unique<KvPool>(shape, absl::MakeSpan(memory.get(), pages),
                                    absl::MakeSpan(memory.get() + pages, blocks));
  }
  std::unique_ptr<uint8_t, decltype(&std::free)> memory{nullptr, &std::free};
  std::unique_ptr<KvPool> pool;
};

// Slots for positions [start, end): bf16 for each block, a page for those that fill up.
absl::Status EnsureSlots(SequenceKv& kv, bool pages, int start, int end) {
  for (int b = BlockOf(start); b <= BlockOf(end - 1); ++b) {
    if (!kv.EnsureBlock(b) || (pages && b >= kSinkBlocks && !kv.EnsurePage(b))) {
      return absl::ResourceExhaustedError("the local pool is too small for this sequence");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> LoadLocalRunner(const LocalModelOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  CodecOptions codec_options;
  ASSIGN_OR_RETURN(codec_options.profile, ParseProfile(options.profile));
  codec_options.shaped_file = options.shaped_file;
  RETURN_IF_ERROR(FindCodecFiles(options.model_dir, &codec_options));
  ASSIGN_OR_RETURN(auto codec, CreateCodec(codec_options, config.kv_shape()));
  TransformerOptions transformer;
  transformer.compute =
      options.compute == "bf16" || (options.compute == "auto" && kernels::HasNativeBf16())
          ? kernels::Compute::kBf16
          : kernels::Compute::kFp32;
  transformer.history =
      options.history == "canonical" ? PrefillHistory::kCanonical : PrefillHistory::kExact;
  transformer.threads = options.threads;
  transformer.progress = options.progress;
  return LoadTransformer(options.model_dir, std::move(codec), transformer);
}

absl::Status LocalGenerate(ModelRunner& runner, const LocalRequest& request,
                           const std::function<void(const SampledToken&)>& on_token) {
  const int n = static_cast<int>(request.tokens.size());
  const ModelConfig& config = runner.config();
  if (n == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (n + request.max_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", n, " tokens and max-tokens ", request.max_tokens,
                     " exceed the model's context of ", config.max_position_embeddings));
  }
  const bool pages = runner.codec().profile() != Profile::kBf16;
  LocalPool memory(config.kv_shape(), n + request.max_tokens + kBlockTokens);
  SequenceKv kv(memory.pool.get());
  std::vector<float> logits;
  for (int start = 0; start < n; start += request.chunk) {
    const int size = std::min(request.chunk, n - start);
    RETURN_IF_ERROR(EnsureSlots(kv, pages, start, start + size));
    PrefillChunk chunk;
    chunk.tokens = absl::MakeConstSpan(request.tokens).subspan(start, size);
    chunk.start = start;
    chunk.kv = &kv;
    chunk.want_logits = start + size == n;
    ASSIGN_OR_RETURN(PrefillOutput out, runner.Prefill(chunk));
    logits = std::move(out.logits);
  }
  std::vector<int32_t> history = request.tokens;
  for (int i = 0;; ++i) {
    const SampledToken token =
        Sample(logits, request.sampling, history, static_cast<int>(history.size()));
    on_token(token);
    const bool stop = std::find(request.stop_tokens.begin(), request.stop_tokens.end(),
                                token.token) != request.stop_tokens.end();
    if (stop || i + 1 == request.max_tokens) return absl::OkStatus();
    const int position = static_cast<int>(history.size());
    history.push_back(token.token);
    RETURN_IF_ERROR(EnsureSlots(kv, pages, position, position + 1));
    const DecodeInput input{token.token, position, &kv};
    RETURN_IF_ERROR(runner.DecodeStep(absl::MakeConstSpan(&input, 1), &logits));
  }
}

}  // namespace oscarkv::cli
