#include "model/transformer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/elementwise/op.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv {
namespace {

template <typename T>
void GrowTo(std::vector<T>* v, size_t n) {
  if (v->size() < n) v->resize(n);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> LoadTransformer(const std::string& model_dir,
                                                             std::shared_ptr<const KvCodec> codec,
                                                             const TransformerOptions& options) {
  ASSIGN_OR_RETURN(const int cuda_device, ParseDevice(options.device));
  if (cuda_device >= 0) return LoadCudaRunner(model_dir, std::move(codec), options);
  return Transformer::Load(model_dir, std::move(codec), options);
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(const std::string& model_dir,
                                                               std::shared_ptr<const KvCodec> codec,
                                                               const TransformerOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Transformer> t, Prepare(model_dir, std::move(codec), options));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorStore> store, TensorStore::Open(model_dir));
  ASSIGN_OR_RETURN(t->weights_,
                   LoadTransformerWeights(*store, t->config_, *t->codec_,
                                          {options.compute, &t->pool_, options.progress}));
  return t;
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Prepare(
    const std::string& model_dir, std::shared_ptr<const KvCodec> codec,
    const TransformerOptions& options) {
  if (codec == nullptr) return absl::InvalidArgumentError("a transformer needs a codec");
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(model_dir));
  if (options.device != "cpu" || options.backend == kernels::Backend::kCuda) {
    return absl::UnimplementedError("this class runs transformers on the CPU only");
  }
  RETURN_IF_ERROR(CheckOptions(config, *codec, options));
  ASSIGN_OR_RETURN(std::vector<float> inv_freq,
                   RopeInverseFrequencies(config.rope, config.head_dim));
  kernels::SetGemmThreads(1);  // see linear.h
  std::unique_ptr<Transformer> t(new Transformer(std::move(config), std::move(codec), options));
  t->rope_ = RopeTables(std::move(inv_freq));
  return t;
}

Transformer::Transformer(ModelConfig config, std::shared_ptr<const KvCodec> codec,
                         const TransformerOptions& options)
    : config_(std::move(config)),
      codec_(std::move(codec)),
      options_(options),
      pool_(options.threads, "okv-model"),
      workspaces_(options.threads) {}

void Transformer::RoundRopeFrequencies() {
  std::vector<float> inv_freq = rope_.inv_freq();
  for (float& f : inv_freq) f = kernels::ToFloat(kernels::ToBf16(f));
  rope_ = RopeTables(std::move(inv_freq));
}

void Transformer::Workspace::Reserve(const ModelConfig& c, int64_t n) {
  if (n <= rows) return;
  rows = n;
  const size_t q = size_t{1} * c.num_heads * c.head_dim,
               kv = size_t{1} * c.num_kv_heads * c.head_dim;
  GrowTo(&normed, n * c.hidden_size);
  GrowTo(&hidden, n * c.hidden_size);
  GrowTo(&qkv, n * (q + 2 * kv));
  GrowTo(&dense, n * q);
  GrowTo(&rotated, n * q);
  GrowTo(&k, n * kv);
  GrowTo(&v, n * kv);
  GrowTo(&gate_up, n * 2 * c.intermediate_size);
  GrowTo(&mlp, n * c.intermediate_size);
  GrowTo(&block, c.kv_shape().Bf16LayerBytes() / sizeof(kernels::Bf16));
}

void Transformer::EmbedTokens(absl::Span<const int32_t> tokens, float* x) const {
  for (size_t i = 0; i < tokens.size(); ++i)
    weights_.embedding.Row(tokens[i], x + i * config_.hidden_size);
}

void Transformer::AttentionInputs(int layer, const float* x, const int32_t* positions, int64_t rows,
                                  kernels::Executor* executor, Workspace* ws, float* q) const {
  const LayerWeights& w = weights_.layers[layer];
  ws->Reserve(config_, rows);
  kernels::RmsNorm(options_.backend, x, w.input_norm.data(), config_.rms_norm_eps, rows,
                   config_.hidden_size, ws->normed.data());
  w.qkv.Run(ws->normed.data(), rows, ws->qkv.data(), executor);
  NormAndTurn(w, positions, rows, ws);
  RotateKeys(w, rows, ws, q);
  const int64_t kv = int64_t{config_.num_kv_heads} * config_.head_dim, row = w.qkv.n();
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(ws->v.data() + i * kv, ws->qkv.data() + (i + 1) * row - kv, kv * sizeof(float));
  }
}

void Transformer::NormAndTurn(const LayerWeights& w, const int32_t* positions, int64_t rows,
                              Workspace* ws) const {
  const int d = config_.head_dim, heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  for (int64_t i = 0; i < rows; ++i) {
    float* q = ws->qkv.data() + i * w.qkv.n();
    float* k = q + heads * d;
    if (config_.qk_norm) {
      kernels::RmsNorm(options_.backend, q, w.q_norm.data(), config_.rms_norm_eps, heads, d, q);
      kernels::RmsNorm(options_.backend, k, w.k_norm.data(), config_.rms_norm_eps, kv_heads, d, k);
    }
    kernels::Rope(options_.backend, q, 1, heads + kv_heads, d, rope_.half_dim(), positions + i,
                  rope_.cos(), rope_.sin());
  }
}

void Transformer::RotateKeys(const LayerWeights& w, int64_t rows, Workspace* ws, float* q) const {
  const int64_t d = config_.head_dim, q_width = config_.num_heads * d,
                kv_width = config_.num_kv_heads * d;
  using Matrices = std::vector<std::unique_ptr<kernels::PackedWeight>>;
  // Part `i` of `parts` equal shares of each row's `width` channels from `offset` on, to or through
  // a matrix into out; `bias`: one per part, or null.
  const auto move = [&](const Matrices& by, const float* bias, int64_t offset, int64_t width,
                        float* out) {
    const int matrices = static_cast<int>(by.size());
    const int parts = std::max(1, matrices);
    const int64_t share = width / parts;
    for (int i = 0; i < parts; ++i) {
      float* in = matrices == 0 ? out : ws->dense.data();
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(in + r * share, ws->qkv.data() + r * w.qkv.n() + offset + i * share,
                    share * sizeof(float));
      }
      if (matrices == 0) continue;
      float* turned = matrices == 1 ? out : ws->rotated.data();
      by[i]->Run(in, rows * share / d, bias == nullptr ? nullptr : bias + i * d, turned);
      for (int64_t r = 0; matrices > 1 && r < rows; ++r) {
        std::memcpy(out + r * width + i * share, turned + r * share, share * sizeof(float));
      }
    }
  };
  // The query heads of one kv head stand together.
  move(w.query_transform.empty() ? w.key_rotation : w.query_transform, nullptr, 0, q_width, q);
  move(w.key_rotation, w.key_offset.empty() ? nullptr : w.key_offset.data(), q_width, kv_width,
       ws->k.data());
}

void Transformer::AttentionOutputs(int layer, const float* attention, int64_t rows,
                                   kernels::Executor* executor, Workspace* ws, float* x) const {
  const LayerWeights& w = weights_.layers[layer];
  const kernels::Backend backend = options_.backend;
  const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  ws->Reserve(config_, rows);
  w.o.Run(attention, rows, ws->hidden.data(), executor);
  kernels::AddInPlace(backend, x, ws->hidden.data(), rows * hidden);
  kernels::RmsNorm(backend, x, w.post_norm.data(), config_.rms_norm_eps, rows, hidden,
                   ws->normed.data());
  w.gate_up.Run(ws->normed.data(), rows, ws->gate_up.data(), executor);
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate = ws->gate_up.data() + i * 2 * width;
    kernels::SiluGate(backend, gate, gate + width, width, ws->mlp.data() + i * width);
  }
  w.down.Run(ws->mlp.data(), rows, ws->hidden.data(), executor);
  kernels::AddInPlace(backend, x, ws->hidden.data(), rows * hidden);
}

void Transformer::Logits(const float* x, int64_t rows, kernels::Executor* executor, Workspace* ws,
                         float* logits) const {
  ws->Reserve(config_, rows);
  kernels::RmsNorm(options_.backend, x, weights_.final_norm.data(), config_.rms_norm_eps, rows,
                   config_.hidden_size, ws->normed.data());
  weights_.lm_head.Run(ws->normed.data(), rows, logits, executor);
}

void Transformer::StoreRow(const float* k, const float* v, int row,
                           kernels::Bf16* block_layer) const {
  const int d = config_.head_dim;
  kernels::Bf16* values = block_layer + config_.kv_shape().Bf16SideElements();
  for (int h = 0; h < config_.num_kv_heads; ++h) {
    const int64_t at = (int64_t{h} * kBlockTokens + row) * d;
    for (int i = 0; i < d; ++i) block_layer[at + i] = kernels::ToBf16(k[h * d + i]);
    for (int i = 0; i < d; ++i) values[at + i] = kernels::ToBf16(v[h * d + i]);
  }
}

}  // namespace oscarkv
