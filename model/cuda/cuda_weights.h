// The weights of a transformer in device memory: products in bf16, everything else in fp32.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "model/cuda/device.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/transformer_weights.h"

namespace oscarkv {

struct CudaProduct {
  DeviceArray<kernels::Bf16> weight;  // [n, k]
  DeviceArray<float> bias;            // [n], or empty
  int64_t n = 0, k = 0;
};

struct CudaLayer {
  DeviceArray<float> input_norm, post_norm;  // [hidden]
  DeviceArray<float> q_norm, k_norm;         // [head_dim], or empty
  CudaProduct qkv, o, gate_up, down;         // as LayerWeights
  // K's rotation from PrepareTransforms: none, one, or one per kv head; that of queries, if it is
  // another one.
  DeviceArray<uint8_t> key_rotation, query_transform;
  int64_t rotation_stride = 0;  // bytes from kv head to kv head; 0: one for all
  DeviceArray<float> key_mean;  // [kv_heads, head_dim], or empty
};

struct CudaWeights {
  std::vector<CudaLayer> layers;
  DeviceArray<uint8_t> embedding;  // [vocab, hidden]
  kernels::cuda::ElementType embedding_type = kernels::cuda::ElementType::kBf16;
  DeviceArray<float> final_norm;
  CudaProduct lm_head;
  // Where the codec encodes with feedback: of K and V, [layers][kv_heads][ShapedTableFloats].
  DeviceArray<float> shaped_tables[2];
};

// Errors as LoadTransformerWeights; kResourceExhausted: they do not fit; kUnimplemented: a codec
// whose encoder GPUs do not have.
absl::StatusOr<CudaWeights> LoadCudaWeights(const Device& device, const TensorStore& store,
                                            const ModelConfig& config, const KvCodec& codec,
                                            const WeightOptions& options);
// Pseudo-random weights of a size that keeps activations finite, for benchmarks.
absl::StatusOr<CudaWeights> RandomCudaWeights(const Device& device, const ModelConfig& config,
                                              const KvCodec& codec, uint64_t seed);

}  // namespace oscarkv
