// A decoder-only transformer's shape, read from a Hugging Face config.json.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layout.h"

namespace oscarkv {

struct RopeConfig {
  enum class Type { kDefault, kLlama3, kLinear };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;  // linear and llama3
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
  int original_max_position_embeddings = 0;
  double partial_rotary_factor = 1.0;
};

struct ModelConfig {
  std::string model_type;  // qwen3, qwen2, llama, mistral
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // biases on q, k, v (Qwen2: always)
  bool output_bias = false;     // bias on o (Llama's attention_bias)
  bool mlp_bias = false;
  bool qk_norm = false;  // Qwen3
  RopeConfig rope;
  std::vector<int> eos_token_ids;  // config.json and generation_config.json, united

  kernels::KvShape kv_shape() const { return {num_layers, num_kv_heads, head_dim}; }
};

// Reads config.json and, where it exists, generation_config.json. Old and new spellings (rope_theta
// + rope_scaling or rope_parameters; torch_dtype or dtype). Unsupported: kUnimplemented that names
// what.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);
// The same from the texts (generation: may be empty).
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& config_json,
                                             const std::string& generation_json);

}  // namespace oscarkv
