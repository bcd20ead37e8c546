// The digest of what decides a model's K and V. Files may be sharded or not, and config.json may be
// spelled either way: the same weights and the same arithmetic give the same digest. Tensors enter
// by their CRC32C (10 GB/s) under the SHA-256: the digest guards against mixing models by mistake,
// not against someone who forges weights.
#include <bit>
#include <cstdint>

#include "common/crc32c.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "model/model_config.h"
#include "model/model_runner.h"
#include "model/safetensors.h"

namespace oscarkv {
namespace {

constexpr absl::string_view kDomain = "oscarkv model fingerprint 1";

void AddDouble(double v, Sha256* sha) {
  sha->UpdateU64(std::bit_cast<uint64_t>(v));
}

// Not in it: the context length and the end-of-sequence tokens, which change no K or V.
void AddConfig(const ModelConfig& c, Sha256* sha) {
  sha->UpdateField(c.model_type);
  for (int v : {c.num_layers, c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads,
                c.head_dim, c.vocab_size}) {
    sha->UpdateU64(v);
  }
  for (bool v : {c.tie_word_embeddings, c.attention_bias, c.output_bias, c.mlp_bias, c.qk_norm})
    sha->UpdateU64(v);
  AddDouble(c.rms_norm_eps, sha);
  sha->UpdateU64(static_cast<uint64_t>(c.rope.type));
  AddDouble(c.rope.theta, sha);
  AddDouble(c.rope.factor, sha);
  AddDouble(c.rope.low_freq_factor, sha);
  AddDouble(c.rope.high_freq_factor, sha);
  sha->UpdateU64(c.rope.original_max_position_embeddings);
  AddDouble(c.rope.partial_rotary_factor, sha);
}

}  // namespace

absl::StatusOr<Sha256Digest> ModelFingerprint(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model_dir));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorStore> store, TensorStore::Open(model_dir));
  Sha256 sha;
  sha.UpdateField(kDomain);
  AddConfig(config, &sha);
  for (const std::string& name : store->Names()) {  // sorted: independent of the files' order
    ASSIGN_OR_RETURN(const TensorView tensor, store->Find(name));
    sha.UpdateField(name);
    sha.UpdateField(DTypeName(tensor.dtype));
    sha.UpdateU64(tensor.shape.size());
    for (int64_t d : tensor.shape) sha.UpdateU64(d);
    sha.UpdateU64(Crc32c(tensor.data, tensor.bytes));
    store->Release(tensor);
  }
  return sha.Finish();
}

}  // namespace oscarkv
