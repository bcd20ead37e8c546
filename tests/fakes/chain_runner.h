// A ModelRunner whose answers depend on every row of KV that a real one would attend, and that
// anyone can predict.
//
// Each token has a state, a hash of the state before it and itself. A bf16 row holds the state, in
// all layers, sides and heads; a page holds a digest of its 64 states and the last one. The logits
// behind position p are a hash of the states of all blocks up to p, read as decode attends them:
// sink in bf16, blocks that left the window from their pages, the rest in bf16. So a block that is
// missing, stale, in the wrong slot or half-written changes the next token. ExpectedTokens computes
// the same from tokens alone.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "codec/codec.h"
#include "model/model_runner.h"

namespace oscarkv {

struct ChainRunnerOptions {
  Profile profile = Profile::kOscar;
  kernels::KvShape shape{3, 2, 64};
  int vocab = 199;
  int max_context = 4096;
};

// Encodes a page's layer from the states in the rows.
std::shared_ptr<const KvCodec> MakeChainCodec(const ChainRunnerOptions& options);

class ChainRunner final : public ModelRunner {
 public:
  explicit ChainRunner(const ChainRunnerOptions& options);
  const ModelConfig& config() const override { return config_; }
  const KvCodec& codec() const override { return *codec_; }
  PrefillHistory prefill_history() const override { return PrefillHistory::kExact; }
  absl::StatusOr<PrefillOutput> Prefill(const PrefillChunk& chunk) override;
  absl::Status DecodeStep(absl::Span<const DecodeInput> batch, std::vector<float>* logits) override;

  // Called, if set, at the start of Prefill (tokens, start) and DecodeStep (batch size, 0) on the
  // engine's thread. A bad status is the outcome.
  std::function<absl::Status(bool prefill, int size, int start)> before;
  // Called, if set, after a layer of a Prefill (and its on_layer).
  std::function<void(int layer)> after_layer;
  std::atomic<int> prefilled_tokens{0};
  std::atomic<int> steps{0};

 private:
  const ChainRunnerOptions options_;
  ModelConfig config_;
  std::shared_ptr<const KvCodec> codec_;
};

// The `count` greedy tokens that follow `tokens`.
std::vector<int32_t> ExpectedTokens(const ChainRunnerOptions& options, std::vector<int32_t> tokens,
                                    int count);

}  // namespace oscarkv
