#include "model/transformer_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// A double to fp32 such that a further rounding to bf16 (if `compute` is that) gives the bf16
// nearest to the double: two roundings differ from one only where the fp32 value fell on a tie of
// bf16 by the first rounding.
float RoundOnce(double v, kernels::Compute compute) {
  float f = static_cast<float>(v);
  if (compute == kernels::Compute::kBf16 && (std::bit_cast<uint32_t>(f) & 0xffffu) == 0x8000u &&
      static_cast<double>(f) != v) {
    f = std::nextafter(f, static_cast<double>(f) < v ? HUGE_VALF : -HUGE_VALF);
  }
  return f;
}

// Row vectors that are multiplied at once.
constexpr int kRows = 4;
using Pair [[gnu::vector_size(16)]] = double;

// out = in M for kRows row vectors of n values, n a multiple of 4; M row-major [n, n].
// Register-blocked: a model of 8 billion parameters folds some 100 billion products when it loads.
void Multiply(const double* in, const double* m, int n, double* out) {
  for (int j = 0; j < n; j += 4) {
    Pair sum[kRows][2] = {};
    for (int c = 0; c < n; ++c) {
      Pair m0, m1;
      std::memcpy(&m0, m + c * n + j, sizeof(Pair));
      std::memcpy(&m1, m + c * n + j + 2, sizeof(Pair));
      for (int r = 0; r < kRows; ++r) {
        const Pair v = {in[r * n + c], in[r * n + c]};
        sum[r][0] += v * m0;
        sum[r][1] += v * m1;
      }
    }
    for (int r = 0; r < kRows; ++r) std::memcpy(out + r * n + j, sum[r], sizeof(sum[r]));
  }
}

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};

// All tensors of a model.
std::vector<NamedShape> TensorsOf(const ModelConfig& c) {
  const int64_t h = c.hidden_size, d = c.head_dim, width = c.intermediate_size, q = c.num_heads * d,
                kv = c.num_kv_heads * d;
  std::vector<NamedShape> all = {{"model.embed_tokens.weight", {c.vocab_size, h}},
                                 {"model.norm.weight", {h}}};
  if (!c.tie_word_embeddings) all.push_back({"lm_head.weight", {c.vocab_size, h}});
  const auto product = [&](const std::string& name, int64_t n, int64_t k, bool bias) {
    all.push_back({name + ".weight", {n, k}});
    if (bias) all.push_back({name + ".bias", {n}});
  };
  for (int layer = 0; layer < c.num_layers; ++layer) {
    const std::string p = absl::StrCat("model.layers.", layer, ".");
    all.push_back({p + "input_layernorm.weight", {h}});
    all.push_back({p + "post_attention_layernorm.weight", {h}});
    if (c.qk_norm) {
      all.push_back({p + "self_attn.q_norm.weight", {d}});
      all.push_back({p + "self_attn.k_norm.weight", {d}});
    }
    product(p + "self_attn.q_proj", q, h, c.attention_bias);
    product(p + "self_attn.k_proj", kv, h, c.attention_bias);
    product(p + "self_attn.v_proj", kv, h, c.attention_bias);
    product(p + "self_attn.o_proj", h, q, c.output_bias);
    product(p + "mlp.gate_proj", width, h, c.mlp_bias);
    product(p + "mlp.up_proj", width, h, c.mlp_bias);
    product(p + "mlp.down_proj", h, width, c.mlp_bias);
  }
  return all;
}

class Loader {
 public:
  Loader(const TensorStore& store, const ModelConfig& config, const KvCodec& codec,
         const WeightOptions& options, WeightSink* sink)
      : store_(store), config_(config), codec_(codec), options_(options), sink_(sink) {}

  absl::Status Load() {
    const int h = config_.hidden_size;
    RETURN_IF_ERROR(CheckTensors(store_, config_));
    ASSIGN_OR_RETURN(std::vector<float> embedding,
                     Read("model.embed_tokens.weight", {config_.vocab_size, h}));
    ASSIGN_OR_RETURN(const TensorView view, store_.Find("model.embed_tokens.weight"));
    RETURN_IF_ERROR(sink_->AddEmbedding(view, h));
    if (!config_.tie_word_embeddings) {
      ASSIGN_OR_RETURN(embedding, Read("lm_head.weight", {config_.vocab_size, h}));
    }
    RETURN_IF_ERROR(sink_->AddProduct(-1, Product::kLmHead, embedding, config_.vocab_size, h, {}));
    embedding = {};
    RETURN_IF_ERROR(AddNorm(-1, Norm::kFinal, "model.norm.weight", h));
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      if (options_.progress) options_.progress((layer + 1.0) / (config_.num_layers + 1));
      RETURN_IF_ERROR(LoadLayer(layer));
    }
    if (options_.progress) options_.progress(1.0);
    return absl::OkStatus();
  }

  absl::Status LoadLayer(int layer) {
    const ModelConfig& c = config_;
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    RETURN_IF_ERROR(AddNorm(layer, Norm::kInput, prefix + "input_layernorm.weight", c.hidden_size));
    RETURN_IF_ERROR(
        AddNorm(layer, Norm::kPost, prefix + "post_attention_layernorm.weight", c.hidden_size));
    if (c.qk_norm) {
      RETURN_IF_ERROR(AddNorm(layer, Norm::kQ, prefix + "self_attn.q_norm.weight", c.head_dim));
      RETURN_IF_ERROR(AddNorm(layer, Norm::kK, prefix + "self_attn.k_norm.weight", c.head_dim));
    }
    RETURN_IF_ERROR(LoadAttention(layer, prefix + "self_attn."));
    std::vector<float> weight, bias;
    weight.reserve(size_t{2} * c.intermediate_size * c.hidden_size);
    RETURN_IF_ERROR(Append(prefix + "mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias,
                           &weight, &bias));
    RETURN_IF_ERROR(Append(prefix + "mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias,
                           &weight, &bias));
    RETURN_IF_ERROR(sink_->AddProduct(layer, Product::kGateUp, weight, 2 * c.intermediate_size,
                                      c.hidden_size, std::move(bias)));
    weight.clear();
    bias.clear();
    RETURN_IF_ERROR(Append(prefix + "mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias,
                           &weight, &bias));
    return sink_->AddProduct(layer, Product::kDown, weight, c.hidden_size, c.intermediate_size,
                             std::move(bias));
  }

 private:
  using Norm = WeightSink::Norm;
  using Product = WeightSink::Product;

  absl::StatusOr<std::vector<float>> Read(const std::string& name,
                                          const std::vector<int64_t>& shape) {
    absl::StatusOr<std::vector<float>> values = store_.ReadF32(name, shape);
    if (values.ok()) store_.Release(*store_.Find(name));
    return values;
  }

  absl::Status AddNorm(int layer, Norm which, const std::string& name, int64_t n) {
    ASSIGN_OR_RETURN(std::vector<float> weight, Read(name, {n}));
    return sink_->AddNorm(layer, which, std::move(weight));
  }

  // Appends [rows, columns] of NAME.weight and, where it has one, NAME.bias.
  absl::Status Append(const std::string& name, int64_t rows, int64_t columns, bool has_bias,
                      std::vector<float>* weight, std::vector<float>* bias) {
    ASSIGN_OR_RETURN(const std::vector<float> w, Read(name + ".weight", {rows, columns}));
    weight->insert(weight->end(), w.begin(), w.end());
    if (has_bias) {
      ASSIGN_OR_RETURN(const std::vector<float> b, Read(name + ".bias", {rows}));
      bias->insert(bias->end(), b.begin(), b.end());
    }
    return absl::OkStatus();
  }

  absl::Status LoadAttention(int layer, const std::string& prefix) {
    const ModelConfig& c = config_;
    const int d = c.head_dim, q_rows = c.num_heads * d, kv_rows = c.num_kv_heads * d;
    const int qkv_rows = q_rows + 2 * kv_rows;
    std::vector<float> weight, bias;
    weight.reserve(static_cast<size_t>(qkv_rows) * c.hidden_size);
    RETURN_IF_ERROR(
        Append(prefix + "q_proj", q_rows, c.hidden_size, c.attention_bias, &weight, &bias));
    RETURN_IF_ERROR(
        Append(prefix + "k_proj", kv_rows, c.hidden_size, c.attention_bias, &weight, &bias));
    RETURN_IF_ERROR(
        Append(prefix + "v_proj", kv_rows, c.hidden_size, c.attention_bias, &weight, &bias));
    std::vector<const float*> by_kv_head, by_query_head;
    for (int h = 0; h < c.num_kv_heads; ++h) {
      by_kv_head.push_back(codec_.ValueRotation(layer, h));
      by_query_head.insert(by_query_head.end(), c.num_heads / c.num_kv_heads,
                           codec_.OutputTransform(layer, h));
    }
    const bool means = codec_.ValueMean(layer, 0) != nullptr;
    if (means) {  // values without their mean, before the fold
      bias.resize(qkv_rows);
      for (int h = 0; h < c.num_kv_heads; ++h) {
        for (int i = 0; i < d; ++i)
          bias[q_rows + kv_rows + h * d + i] -= codec_.ValueMean(layer, h)[i];
      }
    }
    float* v = weight.data() + static_cast<size_t>(q_rows + kv_rows) * c.hidden_size;
    FoldIntoRows(by_kv_head, d, c.hidden_size, options_.compute, options_.executor, v);
    if (!bias.empty()) {  // biases are added in fp32, whatever the operands' type
      FoldIntoRows(by_kv_head, d, 1, kernels::Compute::kFp32, nullptr,
                   bias.data() + q_rows + kv_rows);
    }
    RETURN_IF_ERROR(
        sink_->AddProduct(layer, Product::kQkv, weight, qkv_rows, c.hidden_size, std::move(bias)));
    weight.clear();
    bias.clear();
    RETURN_IF_ERROR(
        Append(prefix + "o_proj", c.hidden_size, q_rows, c.output_bias, &weight, &bias));
    if (means) AddOutputMean(layer, weight, &bias);
    FoldIntoColumns(by_query_head, d, c.hidden_size, options_.compute, options_.executor,
                    weight.data());
    return sink_->AddProduct(layer, Product::kO, weight, c.hidden_size, q_rows, std::move(bias));
  }

  // The probabilities of attention sum to 1: what the values lack of their means comes back as W_O
  // times the means, whatever the query. `w`: [hidden, query heads * d], before the fold.
  void AddOutputMean(int layer, const std::vector<float>& w, std::vector<float>* bias) const {
    const int d = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    const size_t width = static_cast<size_t>(config_.num_heads) * d;
    bias->resize(config_.hidden_size);
    for (int r = 0; r < config_.hidden_size; ++r) {
      double sum = (*bias)[r];
      for (int h = 0; h < config_.num_heads; ++h) {
        const float* mean = codec_.ValueMean(layer, h / group);
        for (int i = 0; i < d; ++i) sum += double{w[r * width + h * d + i]} * mean[i];
      }
      (*bias)[r] = static_cast<float>(sum);
    }
  }

  const TensorStore& store_;
  const ModelConfig& config_;
  const KvCodec& codec_;
  const WeightOptions& options_;
  WeightSink* const sink_;
};

// Packs products for the CPU.
class CpuSink final : public WeightSink {
 public:
  CpuSink(const ModelConfig& config, const KvCodec& codec, const WeightOptions& options)
      : config_(config), codec_(codec), options_(options) {
    weights_.layers.resize(config.num_layers);
  }

  TransformerWeights Take() {
    for (int layer = 0; layer < config_.num_layers; ++layer)
      PackKeyRotation(layer, &weights_.layers[layer]);
    return std::move(weights_);
  }
  LayerWeights TakeLayer(int layer) {
    PackKeyRotation(layer, &weights_.layers[layer]);
    return std::move(weights_.layers[layer]);
  }

  absl::Status AddEmbedding(const TensorView& view, int64_t hidden) override {
    weights_.embedding = Embedding(view, hidden);
    return absl::OkStatus();
  }

  absl::Status AddNorm(int layer, Norm which, std::vector<float> weight) override {
    *NormOf(layer, which) = std::move(weight);
    return absl::OkStatus();
  }

  absl::Status AddProduct(int layer, Product which, const std::vector<float>& weight, int64_t n,
                          int64_t k, std::vector<float> bias) override {
    // Rounding errors of Q and K go through the softmax's exponent. With x rounded to bf16 they
    // alone cost a golden model of random weights 1.3 % of its argmaxes, as much as all other
    // products together.
    const Operand operand = which == Product::kQkv ? Operand::kSplit : Operand::kRounded;
    const int slices = options_.executor == nullptr ? 1 : options_.executor->num_threads();
    *ProductOf(layer, which) =
        Linear(weight.data(), n, k, std::move(bias), options_.compute, operand, slices);
    return absl::OkStatus();
  }

 private:
  std::vector<float>* NormOf(int layer, Norm which) {
    if (which == Norm::kFinal) return &weights_.final_norm;
    LayerWeights& w = weights_.layers[layer];
    if (which == Norm::kInput) return &w.input_norm;
    if (which == Norm::kPost) return &w.post_norm;
    return which == Norm::kQ ? &w.q_norm : &w.k_norm;
  }
  Linear* ProductOf(int layer, Product which) {
    if (which == Product::kLmHead) return &weights_.lm_head;
    LayerWeights& w = weights_.layers[layer];
    if (which == Product::kQkv) return &w.qkv;
    if (which == Product::kO) return &w.o;
    return which == Product::kGateUp ? &w.gate_up : &w.down;
  }

  void PackKeyRotation(int layer, LayerWeights* w) const {
    const int d = config_.head_dim, heads = config_.num_kv_heads;
    const float* first = codec_.KeyRotation(layer, 0);
    if (first == nullptr) return;
    const auto same = [&](const float* a, const float* b) {
      return a == b || std::memcmp(a, b, sizeof(float) * d * d) == 0;
    };
    bool shared = codec_.KeyMean(layer, 0) == nullptr, orthogonal = true;
    for (int h = 0; h < heads; ++h) {
      const float* m = codec_.KeyRotation(layer, h);
      orthogonal &= same(codec_.QueryTransform(layer, h), m);
      shared &= same(m, first) && same(codec_.QueryTransform(layer, h), m);
    }
    for (int h = 0; h < (shared ? 1 : heads); ++h) {
      w->key_rotation.push_back(PackTransform(codec_.KeyRotation(layer, h)));
      if (!orthogonal) w->query_transform.push_back(PackTransform(codec_.QueryTransform(layer, h)));
      if (const float* mean = codec_.KeyMean(layer, h); mean != nullptr)
        AppendKeyOffset(mean, codec_.KeyRotation(layer, h), w);
    }
  }

  // Of row vectors: x M. PackedWeight computes x W^T.
  std::unique_ptr<kernels::PackedWeight> PackTransform(const float* m) const {
    const int d = config_.head_dim;
    std::vector<float> transposed(static_cast<size_t>(d) * d);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) transposed[j * d + i] = m[i * d + j];
    }
    return kernels::PackedWeight::Create(transposed.data(), d, d, kernels::Compute::kFp32);
  }

  // -mean M.
  void AppendKeyOffset(const float* mean, const float* m, LayerWeights* w) const {
    const int d = config_.head_dim;
    for (int j = 0; j < d; ++j) {
      double sum = 0;
      for (int i = 0; i < d; ++i) sum -= double{mean[i]} * m[i * d + j];
      w->key_offset.push_back(static_cast<float>(sum));
    }
  }

  const ModelConfig& config_;
  const KvCodec& codec_;
  const WeightOptions& options_;
  TransformerWeights weights_;
};

// Where the vectors to fold lie: element c of vector i at i * vector + c * element.
struct Strides {
  int64_t vector, element;
};

// Each of `count` vectors of w becomes itself times the rotation (null: stays as it is).
void Fold(const float* rotation, int n, int64_t count, Strides strides, kernels::Compute compute,
          kernels::Executor* executor, float* w) {
  if (rotation == nullptr) return;
  const std::vector<double> m(rotation, rotation + n * n);
  // Tasks of several groups: where neighbouring vectors share cache lines, so do the groups.
  constexpr int64_t kTask = 8 * kRows;
  const auto task = [&](int t) {
    std::vector<double> in(kRows * n), out(kRows * n);
    const int64_t end = std::min(count, (t + 1) * kTask);
    for (int64_t first = t * kTask; first < end; first += kRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kRows, end - first));
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < n; ++c)
          in[r * n + c] = w[(first + r) * strides.vector + c * strides.element];
      }
      Multiply(in.data(), m.data(), n, out.data());
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < n; ++c) {
          w[(first + r) * strides.vector + c * strides.element] =
              RoundOnce(out[r * n + c], compute);
        }
      }
    }
  };
  const int tasks = static_cast<int>((count + kTask - 1) / kTask);
  if (executor != nullptr) return executor->ParallelFor(tasks, task);
  for (int t = 0; t < tasks; ++t) task(t);
}

}  // namespace

absl::StatusOr<TransformerWeights> LoadTransformerWeights(const TensorStore& store,
                                                          const ModelConfig& config,
                                                          const KvCodec& codec,
                                                          const WeightOptions& options) {
  CpuSink sink(config, codec, options);
  RETURN_IF_ERROR(ReadWeights(store, config, codec, options, &sink));
  return sink.Take();
}

absl::StatusOr<LayerWeights> LoadLayerWeights(const TensorStore& store, const ModelConfig& config,
                                              const KvCodec& codec, const WeightOptions& options,
                                              int layer) {
  CpuSink sink(config, codec, options);
  RETURN_IF_ERROR(Loader(store, config, codec, options, &sink).LoadLayer(layer));
  return sink.TakeLayer(layer);
}

absl::Status CheckTensors(const TensorStore& store, const ModelConfig& config) {
  std::set<std::string> expected;
  for (const auto& [name, shape] : TensorsOf(config)) {
    RETURN_IF_ERROR(store.Find(name, shape).status());
    expected.insert(name);
  }
  if (config.tie_word_embeddings) expected.insert("lm_head.weight");  // some hold the copy, too
  std::vector<std::string> unknown;
  for (const std::string& name : store.Names()) {
    // Old exporters saved this table, which follows from config.json.
    if (expected.contains(name) || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    if (unknown.size() == 5) {
      unknown.push_back("...");
      break;
    }
    unknown.push_back(name);
  }
  if (unknown.empty()) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the model has tensors that this ", config.model_type,
                   " implementation does not know: ", absl::StrJoin(unknown, ", ")));
}

absl::Status ReadWeights(const TensorStore& store, const ModelConfig& config, const KvCodec& codec,
                         const WeightOptions& options, WeightSink* sink) {
  return Loader(store, config, codec, options, sink).Load();
}

void FoldIntoRows(const std::vector<const float*>& rotation, int head_dim, int64_t columns,
                  kernels::Compute compute, kernels::Executor* executor, float* w) {
  for (size_t h = 0; h < rotation.size(); ++h) {
    // A column of the head's rows is the vector to multiply.
    float* head = w + h * head_dim * columns;
    Fold(rotation[h], head_dim, columns, {1, columns}, compute, executor, head);
  }
}

void FoldIntoColumns(const std::vector<const float*>& rotation, int head_dim, int64_t rows,
                     kernels::Compute compute, kernels::Executor* executor, float* w) {
  const int64_t width = static_cast<int64_t>(rotation.size()) * head_dim;
  for (size_t h = 0; h < rotation.size(); ++h) {
    Fold(rotation[h], head_dim, rows, {width, 1}, compute, executor, w + h * head_dim);
  }
}

namespace {

// `row`: `width` values of `dtype`.
void ReadRow(DType dtype, const uint8_t* row, int64_t width, float* out) {
  const size_t size = DTypeSize(dtype);
  for (int64_t i = 0; i < width; ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(out + i, row + i * size, sizeof(float));
    } else if (dtype == DType::kF64) {
      double v;
      std::memcpy(&v, row + i * size, sizeof(v));
      out[i] = static_cast<float>(v);
    } else {
      uint16_t v;
      std::memcpy(&v, row + i * size, sizeof(v));
      out[i] = dtype == DType::kBf16 ? kernels::ToFloat(v) : kernels::Fp16ToFloat(v);
    }
  }
}

}  // namespace

Embedding::Embedding(const TensorView& tensor, int64_t width)
    : dtype_(tensor.dtype), width_(width), bytes_(tensor.data, tensor.data + tensor.bytes) {}

void Embedding::Row(int32_t token, float* out) const {
  ReadRow(dtype_, bytes_.data() + static_cast<size_t>(token) * width_ * DTypeSize(dtype_), width_,
          out);
}

void Embedding::Row(const TensorView& tensor, int64_t width, int32_t token, float* out) {
  ReadRow(tensor.dtype, tensor.data + static_cast<size_t>(token) * width * DTypeSize(tensor.dtype),
          width, out);
}

}  // namespace oscarkv
