#include "model/streamed_transformer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv {
namespace {

// Of one packed element. Where the library has no bf16 products, packed weights are fp32.
uint64_t ElementBytes(kernels::Compute compute) {
  return compute == kernels::Compute::kBf16 && kernels::HasNativeBf16() ? 2 : 4;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StreamedTransformer>> StreamedTransformer::Open(
    const std::string& model_dir, std::shared_ptr<const KvCodec> codec,
    TransformerOptions options) {
  options.fp32_kv = true;
  std::unique_ptr<StreamedTransformer> out(new StreamedTransformer);
  ASSIGN_OR_RETURN(out->transformer_, Transformer::Prepare(model_dir, std::move(codec), options));
  out->transformer_->weights_.layers.resize(out->config().num_layers);
  ASSIGN_OR_RETURN(out->store_, TensorStore::Open(model_dir));
  RETURN_IF_ERROR(CheckTensors(*out->store_, out->config()));
  return out;
}

absl::Status StreamedTransformer::Embed(absl::Span<const int32_t> tokens, std::vector<float>* x) {
  PrefillChunk chunk;
  chunk.tokens = tokens;
  RETURN_IF_ERROR(CheckChunk(config(), chunk));
  ASSIGN_OR_RETURN(const TensorView embedding, store_->Find("model.embed_tokens.weight"));
  const int64_t hidden = config().hidden_size;
  x->resize(tokens.size() * hidden);
  for (size_t i = 0; i < tokens.size(); ++i)
    Embedding::Row(embedding, hidden, tokens[i], x->data() + i * hidden);
  store_->Release(embedding);
  return absl::OkStatus();
}

absl::Status StreamedTransformer::LoadLayer(int layer) {
  Transformer& t = *transformer_;
  if (layer_ >= 0) t.weights_.layers[layer_] = LayerWeights();
  layer_ = -1;
  ASSIGN_OR_RETURN(t.weights_.layers[layer],
                   LoadLayerWeights(*store_, config(), t.codec(),
                                    {t.options_.compute, &t.pool_, nullptr}, layer));
  layer_ = layer;
  return absl::OkStatus();
}

absl::Status StreamedTransformer::Run(absl::Span<const int32_t> tokens,
                                      const Transformer::LayerObserver& observer, bool advance,
                                      std::vector<float>* x) {
  Transformer& t = *transformer_;
  if (layer_ < 0) return absl::FailedPreconditionError("no layer is loaded");
  if (x->size() != tokens.size() * config().hidden_size) {
    return absl::InvalidArgumentError(absl::StrCat("hidden states of ", x->size(), " numbers for ",
                                                   tokens.size(), " tokens of ",
                                                   config().hidden_size));
  }
  PrefillChunk chunk;
  chunk.tokens = tokens;
  RETURN_IF_ERROR(CheckChunk(config(), chunk));
  Transformer::Pass pass = t.PlanPass(chunk);
  t.rope_.Ensure(pass.end - 1);
  t.set_layer_observer(observer);
  pass.x.swap(*x);
  absl::Status status = t.FillLayer(layer_, &pass);
  if (status.ok() && advance) status = t.Attend(layer_, &pass);
  pass.x.swap(*x);
  return status;
}

StreamedTransformer::LayerMemory StreamedTransformer::MemoryOfLayer(const ModelConfig& c,
                                                                    kernels::Compute compute) {
  const uint64_t hidden = c.hidden_size, q = uint64_t{1} * c.num_heads * c.head_dim,
                 kv = uint64_t{1} * c.num_kv_heads * c.head_dim, mlp = c.intermediate_size;
  const uint64_t qkv = (q + 2 * kv) * hidden, o = q * hidden, gate_up = 2 * mlp * hidden;
  LayerMemory out;
  out.weights = ElementBytes(compute) * (qkv + o + gate_up + gate_up / 2);
  // The largest product in fp32, a part of it in fp32 as it was read, and that part's pages of the
  // file; or the product rounded and not yet packed.
  const uint64_t largest = std::max(qkv, gate_up), part = std::max(q * hidden, gate_up / 2);
  out.reading = 4 * largest + std::max((4 + 4) * part, ElementBytes(compute) * largest);
  return out;
}

uint64_t StreamedTransformer::MemoryOfModel(const ModelConfig& c, kernels::Compute compute) {
  const LayerMemory layer = MemoryOfLayer(c, compute);
  const uint64_t embedding = uint64_t{1} * c.vocab_size * c.hidden_size;
  // The embedding as the file has it, the output matrix packed; while reading, the larger of a
  // layer and the output matrix in fp32 and rounded.
  return c.num_layers * layer.weights + 2 * ElementBytes(compute) * embedding +
         std::max(layer.reading, (4 + ElementBytes(compute)) * embedding);
}

uint64_t StreamedTransformer::MemoryOfPrompt(const ModelConfig& c, int64_t tokens) {
  const uint64_t q = uint64_t{1} * c.num_heads * c.head_dim,
                 kv = uint64_t{1} * c.num_kv_heads * c.head_dim;
  // Pass::x for a moment, q and out; K and V.
  return sizeof(float) * tokens * (c.hidden_size + 2 * q + 2 * kv);
}

}  // namespace oscarkv
