#include "model/cuda/cuda_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

using kernels::Bf16;
using kernels::cuda::ElementType;

// Copies and waits: `values` may go.
template <class T>
absl::StatusOr<DeviceArray<T>> ToDevice(const Device& device, const T* values, size_t n) {
  ASSIGN_OR_RETURN(DeviceArray<T> array, DeviceArray<T>::Create(device, n));
  if (n > 0) {
    RETURN_IF_ERROR(array.Upload(values, n));
    RETURN_IF_ERROR(device.Synchronize());
  }
  return array;
}

bool SameMatrix(const float* a, const float* b, int d) {
  return a == b || std::memcmp(a, b, sizeof(float) * d * d) == 0;
}

absl::Status CheckCodec(const KvCodec& codec) {
  if (codec.profile() == Profile::kBf16 || codec.ClipRatio(kernels::Side::kKey) > 0 ||
      codec.ShapedEncoding(0, 0, kernels::Side::kKey).has_value())
    return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("codec ", codec.Describe(),
                   ": GPUs have no encoder for it; use another --profile, or --device cpu"));
}

// Prepared: the matrices of `get`(kv head), n of them.
template <class Get>
absl::StatusOr<DeviceArray<uint8_t>> PrepareMatrices(const Device& device, int d, int n,
                                                     const Get& get) {
  std::vector<float> matrices;
  for (int h = 0; h < n; ++h) matrices.insert(matrices.end(), get(h), get(h) + d * d);
  ASSIGN_OR_RETURN(const DeviceArray<float> on_device,
                   ToDevice(device, matrices.data(), matrices.size()));
  ASSIGN_OR_RETURN(
      DeviceArray<uint8_t> prepared,
      DeviceArray<uint8_t>::Create(device, n * kernels::cuda::PreparedTransformBytes(d)));
  RETURN_IF_ERROR(device.Check(
      device.api().PrepareTransforms(d, kernels::cuda::RowType::kBf16, on_device.data(), n,
                                     prepared.data(), device.stream()),
      "key rotations"));
  RETURN_IF_ERROR(device.Synchronize());
  return prepared;
}

// What K and queries go through in a layer.
absl::Status AddRotation(const Device& device, const KvCodec& codec, int layer, CudaLayer* w) {
  const kernels::KvShape& s = codec.shape();
  const int d = s.head_dim;
  const auto key = [&](int h) { return codec.KeyRotation(layer, h); };
  const auto query = [&](int h) { return codec.QueryTransform(layer, h); };
  if (key(0) == nullptr) return absl::OkStatus();
  bool shared = true, orthogonal = true;
  for (int h = 0; h < s.num_kv_heads; ++h) {
    orthogonal &= SameMatrix(query(h), key(h), d);
    shared &= SameMatrix(key(h), key(0), d) && SameMatrix(query(h), query(0), d);
  }
  const int n = shared ? 1 : s.num_kv_heads;
  w->rotation_stride = shared ? 0 : static_cast<int64_t>(kernels::cuda::PreparedTransformBytes(d));
  ASSIGN_OR_RETURN(w->key_rotation, PrepareMatrices(device, d, n, key));
  if (!orthogonal) {
    ASSIGN_OR_RETURN(w->query_transform, PrepareMatrices(device, d, n, query));
  }
  if (codec.KeyMean(layer, 0) == nullptr) return absl::OkStatus();
  std::vector<float> means;
  for (int h = 0; h < s.num_kv_heads; ++h)
    means.insert(means.end(), codec.KeyMean(layer, h), codec.KeyMean(layer, h) + d);
  ASSIGN_OR_RETURN(w->key_mean, ToDevice(device, means.data(), means.size()));
  return absl::OkStatus();
}

absl::Status AddShapedTables(const Device& device, const KvCodec& codec, CudaWeights* w) {
  const kernels::KvShape& s = codec.shape();
  const size_t floats = kernels::cuda::ShapedTableFloats(s.head_dim);
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    std::vector<float> tables;
    for (int layer = 0; layer < s.num_layers; ++layer) {
      for (int h = 0; h < s.num_kv_heads; ++h) {
        const auto encoding = codec.ShapedEncoding(layer, h, side);
        if (!encoding.has_value()) return absl::OkStatus();
        tables.resize(tables.size() + floats);
        device.api().FillShapedTable(*encoding, tables.data() + tables.size() - floats);
      }
    }
    ASSIGN_OR_RETURN(w->shaped_tables[static_cast<int>(side)],
                     ToDevice(device, tables.data(), tables.size()));
  }
  return absl::OkStatus();
}

class CudaSink final : public WeightSink {
 public:
  CudaSink(const Device& device, const ModelConfig& config, kernels::Executor* executor)
      : device_(device), executor_(executor) {
    weights_.layers.resize(config.num_layers);
  }

  CudaWeights Take() { return std::move(weights_); }

  absl::Status AddEmbedding(const TensorView& view, int64_t hidden) override {
    const int64_t n = static_cast<int64_t>(view.bytes / DTypeSize(view.dtype));
    if (view.dtype == DType::kBf16 || view.dtype == DType::kF32) {
      weights_.embedding_type =
          view.dtype == DType::kBf16 ? ElementType::kBf16 : ElementType::kFloat32;
      ASSIGN_OR_RETURN(weights_.embedding, ToDevice(device_, view.data, view.bytes));
      return absl::OkStatus();
    }
    // fp16 and fp64 become fp32.
    const Embedding rows(view, hidden);
    std::vector<float> values(n);
    for (int64_t r = 0; r < n / hidden; ++r)
      rows.Row(static_cast<int32_t>(r), values.data() + r * hidden);
    weights_.embedding_type = ElementType::kFloat32;
    ASSIGN_OR_RETURN(weights_.embedding,
                     ToDevice(device_, reinterpret_cast<const uint8_t*>(values.data()),
                              values.size() * sizeof(float)));
    return absl::OkStatus();
  }

  absl::Status AddNorm(int layer, Norm which, std::vector<float> weight) override {
    ASSIGN_OR_RETURN(DeviceArray<float> array, ToDevice(device_, weight.data(), weight.size()));
    if (which == Norm::kFinal) {
      weights_.final_norm = std::move(array);
      return absl::OkStatus();
    }
    CudaLayer& w = weights_.layers[layer];
    (which == Norm::kInput  ? w.input_norm
     : which == Norm::kPost ? w.post_norm
     : which == Norm::kQ    ? w.q_norm
                            : w.k_norm) = std::move(array);
    return absl::OkStatus();
  }

  absl::Status AddProduct(int layer, Product which, const std::vector<float>& weight, int64_t n,
                          int64_t k, std::vector<float> bias) override {
    if (k % 8 != 0) {
      return absl::UnimplementedError(
          absl::StrCat("a matrix of ", n, " x ", k, ": GPUs need widths that 8 divides"));
    }
    rounded_.resize(weight.size());
    constexpr int64_t kTask = 1 << 20;
    const int64_t size = static_cast<int64_t>(weight.size());
    const auto round = [&](int t) {
      for (int64_t i = t * kTask; i < std::min(size, (t + 1) * kTask); ++i)
        rounded_[i] = kernels::ToBf16(weight[i]);
    };
    const int tasks = static_cast<int>((size + kTask - 1) / kTask);
    if (executor_ != nullptr) {
      executor_->ParallelFor(tasks, round);
    } else {
      for (int t = 0; t < tasks; ++t) round(t);
    }
    CudaProduct product;
    product.n = n;
    product.k = k;
    ASSIGN_OR_RETURN(product.weight, ToDevice(device_, rounded_.data(), rounded_.size()));
    ASSIGN_OR_RETURN(product.bias, ToDevice(device_, bias.data(), bias.size()));
    *ProductOf(layer, which) = std::move(product);
    return absl::OkStatus();
  }

 private:
  CudaProduct* ProductOf(int layer, Product which) {
    if (which == Product::kLmHead) return &weights_.lm_head;
    CudaLayer& w = weights_.layers[layer];
    if (which == Product::kQkv) return &w.qkv;
    if (which == Product::kO) return &w.o;
    return which == Product::kGateUp ? &w.gate_up : &w.down;
  }

  const Device& device_;
  kernels::Executor* const executor_;
  std::vector<Bf16> rounded_;
  CudaWeights weights_;
};

// Random weights of one kind after the other.
class RandomWeights {
 public:
  RandomWeights(const Device& device, uint64_t seed) : device_(device), seed_(seed) {}

  // Rows of y have the size of x's.
  absl::StatusOr<CudaProduct> Product(int64_t n, int64_t k) {
    CudaProduct p;
    p.n = n;
    p.k = k;
    ASSIGN_OR_RETURN(p.weight, DeviceArray<Bf16>::Create(device_, n * k));
    const float range = std::sqrt(3.0f / static_cast<float>(k));
    RETURN_IF_ERROR(Fill({p.weight.data(), ElementType::kBf16}, n * k, range));
    return p;
  }
  absl::StatusOr<DeviceArray<float>> Ones(int64_t n) {
    const std::vector<float> ones(n, 1.0f);
    return ToDevice(device_, ones.data(), ones.size());
  }
  absl::Status Fill(kernels::cuda::MutableElements to, int64_t n, float range) {
    seed_ += 0x100000001b3;
    return device_.Check(device_.api().FillUniform(to, n, range, seed_ << 16, device_.stream()),
                         "random weights");
  }

 private:
  const Device& device_;
  uint64_t seed_;
};

}  // namespace

absl::StatusOr<CudaWeights> LoadCudaWeights(const Device& device, const TensorStore& store,
                                            const ModelConfig& config, const KvCodec& codec,
                                            const WeightOptions& options) {
  RETURN_IF_ERROR(CheckCodec(codec));
  CudaSink sink(device, config, options.executor);
  RETURN_IF_ERROR(ReadWeights(store, config, codec, options, &sink));
  CudaWeights weights = sink.Take();
  for (int layer = 0; layer < config.num_layers; ++layer)
    RETURN_IF_ERROR(AddRotation(device, codec, layer, &weights.layers[layer]));
  RETURN_IF_ERROR(AddShapedTables(device, codec, &weights));
  return weights;
}

absl::StatusOr<CudaWeights> RandomCudaWeights(const Device& device, const ModelConfig& c,
                                              const KvCodec& codec, uint64_t seed) {
  RETURN_IF_ERROR(CheckCodec(codec));
  RandomWeights random(device, seed);
  CudaWeights w;
  const int64_t h = c.hidden_size, q = int64_t{c.num_heads} * c.head_dim,
                kv = int64_t{c.num_kv_heads} * c.head_dim;
  const int64_t table = c.vocab_size * h;
  ASSIGN_OR_RETURN(w.embedding, DeviceArray<uint8_t>::Create(device, 2 * table));
  RETURN_IF_ERROR(random.Fill({w.embedding.data(), ElementType::kBf16}, table, 1.0f));
  ASSIGN_OR_RETURN(w.final_norm, random.Ones(h));
  ASSIGN_OR_RETURN(w.lm_head, random.Product(c.vocab_size, h));
  w.layers.resize(c.num_layers);
  for (int layer = 0; layer < c.num_layers; ++layer) {
    CudaLayer& l = w.layers[layer];
    ASSIGN_OR_RETURN(l.input_norm, random.Ones(h));
    ASSIGN_OR_RETURN(l.post_norm, random.Ones(h));
    if (c.qk_norm) {
      ASSIGN_OR_RETURN(l.q_norm, random.Ones(c.head_dim));
      ASSIGN_OR_RETURN(l.k_norm, random.Ones(c.head_dim));
    }
    ASSIGN_OR_RETURN(l.qkv, random.Product(q + 2 * kv, h));
    ASSIGN_OR_RETURN(l.o, random.Product(h, q));
    ASSIGN_OR_RETURN(l.gate_up, random.Product(2 * c.intermediate_size, h));
    ASSIGN_OR_RETURN(l.down, random.Product(h, c.intermediate_size));
    RETURN_IF_ERROR(AddRotation(device, codec, layer, &l));
  }
  RETURN_IF_ERROR(AddShapedTables(device, codec, &w));
  RETURN_IF_ERROR(device.Synchronize());
  return w;
}

}  // namespace oscarkv
