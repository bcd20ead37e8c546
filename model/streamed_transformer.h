// A transformer on the CPU that runs layer by layer over many prompts, with the weights of one
// layer in memory: for work that passes over a model larger than memory. What a layer computes is
// to the bit what Transformer::Prefill computes with fp32_kv.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace oscarkv {

// Not thread-safe.
class StreamedTransformer {
 public:
  // The errors of Transformer::Load: all tensors are looked at, none is read.
  static absl::StatusOr<std::unique_ptr<StreamedTransformer>> Open(
      const std::string& model_dir, std::shared_ptr<const KvCodec> codec,
      TransformerOptions options);

  const ModelConfig& config() const { return transformer_->config(); }
  kernels::Executor* executor() { return transformer_->executor(); }

  // x: [tokens, hidden], resized: what a prompt is when it goes into layer 0.
  absl::Status Embed(absl::Span<const int32_t> tokens, std::vector<float>* x);
  // Lets the weights of the layer before go, then reads those of `layer`.
  absl::Status LoadLayer(int layer);
  // A prompt's way through the loaded layer. `x`: as Embed or the layer before left it.
  // `observer`: sees what attention gets. `advance`: x becomes what goes into the next layer (in
  // the last layer it stays: nobody wants logits); else x stays.
  absl::Status Run(absl::Span<const int32_t> tokens, const Transformer::LayerObserver& observer,
                   bool advance, std::vector<float>* x);

  // Bytes of a layer's weights, and what more there is for a moment while they are read.
  struct LayerMemory {
    uint64_t weights = 0, reading = 0;
  };
  static LayerMemory MemoryOfLayer(const ModelConfig& config, kernels::Compute compute);
  // Of a whole model as Transformer::Load leaves it, and what more there is while it reads.
  static uint64_t MemoryOfModel(const ModelConfig& config, kernels::Compute compute);
  // Of what a prompt is in a layer beside x: queries, outputs, K and V.
  static uint64_t MemoryOfPrompt(const ModelConfig& config, int64_t tokens);

 private:
  StreamedTransformer() = default;

  std::unique_ptr<TensorStore> store_;
  std::unique_ptr<Transformer> transformer_;
  int layer_ = -1;  // which is loaded
};

}  // namespace oscarkv
