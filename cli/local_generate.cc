#include "cli/local_generate.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "codec/codec.h"
#include "common/status_macros.h"
#include "eval/local_sequence.h"

namespace oscarkv::cli {
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadLocalRunner(const LocalModelOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  CodecOptions codec_options;
  ASSIGN_OR_RETURN(codec_options.profile, ParseProfile(options.profile));
  codec_options.shaped_file = options.shaped_file;
  RETURN_IF_ERROR(FindCodecFiles(options.model_dir, &codec_options));
  ASSIGN_OR_RETURN(auto codec, CreateCodec(codec_options, config.kv_shape()));
  TransformerOptions transformer;
  transformer.device = options.device;
  const bool native = options.device != "cpu" || kernels::HasNativeBf16();
  transformer.compute = options.compute == "bf16" || (options.compute == "auto" && native)
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
  LocalSequence sequence(runner, n + request.max_tokens + kBlockTokens);
  std::vector<float> logits;
  for (int start = 0; start < n; start += request.chunk) {
    const int size = std::min(request.chunk, n - start);
    PrefillChunk chunk;
    chunk.want_logits = start + size == n;
    ASSIGN_OR_RETURN(
        PrefillOutput out,
        sequence.Prefill(runner, absl::MakeConstSpan(request.tokens).subspan(start, size), start,
                         std::move(chunk)));
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
    RETURN_IF_ERROR(sequence.EnsureSlots(position, position + 1));
    const DecodeInput input{token.token, position, &sequence.kv()};
    RETURN_IF_ERROR(runner.DecodeStep(absl::MakeConstSpan(&input, 1), &logits));
  }
}

}  // namespace oscarkv::cli
