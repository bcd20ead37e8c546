// The weights of a transformer as its arithmetic wants them: products packed, value rotation folded
// in, norms in fp32.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "kernels/gemm/gemm.h"
#include "model/linear.h"
#include "model/model_config.h"
#include "model/safetensors.h"

namespace oscarkv {

struct LayerWeights {
  std::vector<float> input_norm, post_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;         // [head_dim], or empty
  Linear qkv;      // hidden -> q heads, k heads, v heads (rotated), each [heads][head_dim]
  Linear o;        // q heads (of rotated values) -> hidden
  Linear gate_up;  // hidden -> gate, up, each [intermediate]
  Linear down;     // intermediate -> hidden
  // The rotation of K and of its group's Q in fp32: none (identity), one for all kv heads, or one
  // per kv head.
  std::vector<std::unique_ptr<kernels::PackedWeight>> key_rotation;
  // Where Q's is another matrix than K's: one per kv head, as is key_rotation then. Else empty.
  std::vector<std::unique_ptr<kernels::PackedWeight>> query_transform;
  // [kv heads][head_dim], added to K behind its rotation (the mean it lives without), or empty.
  std::vector<float> key_offset;
};

// Token embeddings in the type of the file.
class Embedding {
 public:
  Embedding() = default;
  // A copy.
  Embedding(const TensorView& tensor, int64_t width);
  // out: [width]; 0 <= token < rows.
  void Row(int32_t token, float* out) const;
  // One row of the tensor itself.
  static void Row(const TensorView& tensor, int64_t width, int32_t token, float* out);

 private:
  DType dtype_ = DType::kF32;
  int64_t width_ = 0;
  std::vector<uint8_t> bytes_;
};

struct TransformerWeights {
  std::vector<LayerWeights> layers;
  Embedding embedding;
  std::vector<float> final_norm;  // [hidden]
  Linear lm_head;                 // hidden -> vocab
};

struct WeightOptions {
  kernels::Compute compute = kernels::Compute::kBf16;
  kernels::Executor* executor =
      nullptr;  // for the folding; the number of its threads is that of a product's slices
  std::function<void(double)> progress;
};

// Where weights go as they are read, folded and still in fp32, one after the other.
class WeightSink {
 public:
  enum class Norm { kInput, kPost, kQ, kK, kFinal };
  enum class Product { kQkv, kO, kGateUp, kDown, kLmHead };

  virtual ~WeightSink() = default;
  // `view`: [vocab, hidden], valid during the call.
  virtual absl::Status AddEmbedding(const TensorView& view, int64_t hidden) = 0;
  // `layer`: -1 for kFinal and kLmHead. Layers come in order, each with all of its parts.
  virtual absl::Status AddNorm(int layer, Norm which, std::vector<float> weight) = 0;
  // `weight`: [n, k]; `bias`: [n] or empty. With WeightOptions::compute bf16 a weight that was
  // folded rounds to the bf16 nearest to the float64 result.
  virtual absl::Status AddProduct(int layer, Product which, const std::vector<float>& weight,
                                  int64_t n, int64_t k, std::vector<float> bias) = 0;
};
// The errors are those of LoadTransformerWeights, and the sink's.
absl::Status ReadWeights(const TensorStore& store, const ModelConfig& config, const KvCodec& codec,
                         const WeightOptions& options, WeightSink* sink);

// kNotFound: a tensor of the architecture is missing; kInvalidArgument: wrong shape;
// kUnimplemented: a tensor that the architecture, as read from config.json, does not have. Each
// names the tensor. What exists in fp32 at a time is one layer at most, or the embedding.
absl::StatusOr<TransformerWeights> LoadTransformerWeights(const TensorStore& store,
                                                          const ModelConfig& config,
                                                          const KvCodec& codec,
                                                          const WeightOptions& options);
// One layer of a store that CheckTensors found good.
absl::StatusOr<LayerWeights> LoadLayerWeights(const TensorStore& store, const ModelConfig& config,
                                              const KvCodec& codec, const WeightOptions& options,
                                              int layer);
// That the store holds the tensors of the architecture, in their shapes, and no others: the errors
// of LoadTransformerWeights, before anything is read.
absl::Status CheckTensors(const TensorStore& store, const ModelConfig& config);

// The fold, exposed for its test. Both compute in float64 and round once to the compute type's
// precision. w: [heads * head_dim, columns]; the rows of head h become R_h^T w_h, so that (w x)_h
// becomes (w x)_h R_h as a row vector.
void FoldIntoRows(const std::vector<const float*>& rotation, int head_dim, int64_t columns,
                  kernels::Compute compute, kernels::Executor* executor, float* w);
// w: [rows, heads * head_dim]; the columns of head h become w_h R_h: undoes the rotation of head
// h's input.
void FoldIntoColumns(const std::vector<const float*>& rotation, int head_dim, int64_t rows,
                     kernels::Compute compute, kernels::Executor* executor, float* w);

}  // namespace oscarkv
