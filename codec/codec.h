// A KV codec: the transform of K and V, and the two directions between bf16 blocks and 2-bit pages.
//
// Keys and values live in the codec's space everywhere behind the model's projections: K and Q are
// multiplied by the key rotation (profile shaped: K by a transform, Q by its inverse transposed)
// after RoPE; the value transform is folded into W_V and its inverse into W_O when the model loads.
// Sink, window and hand-over blocks hold rotated bf16 rows; the codes are made from those same
// rows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/sha256.h"
#include "kernels/layout.h"
#include "kernels/q2_encode/op.h"
#include "kernels/q2_encode/shaped.h"
#include "kernels/types.h"

namespace oscarkv {

enum class Profile : uint8_t { kBf16 = 0, kOscar = 1, kShaped = 2, kShapedSym = 3 };
// Both profiles of the feedback encoder (codec/shaped_codec.h).
constexpr bool IsShaped(Profile profile) {
  return profile == Profile::kShaped || profile == Profile::kShapedSym;
}
absl::string_view ProfileName(Profile profile);
absl::StatusOr<Profile> ParseProfile(absl::string_view name);

// Immutable after creation: safe to share between threads.
class KvCodec {
 public:
  virtual ~KvCodec() = default;

  virtual Profile profile() const = 0;
  // The model's, and whether this codec's pages have offset planes.
  virtual const kernels::KvShape& shape() const = 0;
  // Digest of all that decides the bytes: profile, transforms, clip ratios. Blocks of different
  // fingerprints never mix.
  virtual const Sha256Digest& fingerprint() const = 0;
  // One line for people: "oscar, rotations from k_rotation_qqt_r_h_pbr.pt, clip K 0.96 V 0.92".
  virtual std::string Describe() const = 0;
  // True when the transform was made without data (Hadamard): accuracy suffers, and whoever serves
  // must say so.
  virtual bool data_free() const = 0;

  // Row-major [head_dim, head_dim] fp32 M: a row of K or V becomes (row - mean) * M; null:
  // identity. Valid as long as the codec. Orthogonal unless the functions below say otherwise.
  virtual const float* KeyRotation(int layer, int kv_head) const = 0;
  virtual const float* ValueRotation(int layer, int kv_head) const = 0;

  // M^-T: what queries are multiplied by, resp. what undoes the transform of V in W_O. The same
  // matrices where they are orthogonal.
  virtual const float* QueryTransform(int layer, int kv_head) const {
    return KeyRotation(layer, kv_head);
  }
  virtual const float* OutputTransform(int layer, int kv_head) const {
    return ValueRotation(layer, kv_head);
  }
  // [head_dim], or null for none (then so for every layer and head). K's is gone for good: it
  // shifts all scores of a query alike. V's is given back by W_O's bias.
  virtual const float* KeyMean(int layer, int kv_head) const { return nullptr; }
  virtual const float* ValueMean(int layer, int kv_head) const { return nullptr; }

  // The clip ratio of q2_encode, where that and the rotations are all there is to encoding; else 0.
  virtual float ClipRatio(kernels::Side side) const { return 0; }

  // How a side of a head is encoded with error feedback, where that is all there is to encoding:
  // everything but rows and page. Its metric is valid as long as the codec.
  virtual std::optional<kernels::ShapedArgs> ShapedEncoding(int layer, int kv_head,
                                                            kernels::Side side) const {
    return std::nullopt;
  }

  // One layer of a block of 64 tokens: bf16 [K,V][kv_head][64][d], rotated -> page layer
  // [kv_head][PageHeadBytes], and back. Inf or NaN in a row: kInvalidArgument. Profile kBf16 has no
  // pages: kFailedPrecondition.
  virtual absl::Status EncodeLayer(int layer, const kernels::Bf16* block_layer,
                                   uint8_t* page_layer) const = 0;
  virtual absl::Status DecodeLayer(int layer, const uint8_t* page_layer,
                                   kernels::Bf16* block_layer) const = 0;
  // Rows whose metadata had to be clamped to fp16's range since creation.
  virtual uint64_t clamped_rows() const = 0;
};

struct CodecOptions {
  Profile profile = Profile::kOscar;
  std::string key_rotation_file;  // RotationZoo .pt or safetensors; empty with data_free
  std::string value_rotation_file;
  bool data_free = false;  // Hadamard instead of files
  float key_clip = 0.96f;
  float value_clip = 0.92f;
  std::string shaped_file;  // profiles shaped, shaped-sym: what `oscarkv calibrate` wrote for them
  int sweeps = 2;           // the same: of the encoder behind its feedback, 0..4
};

absl::StatusOr<std::shared_ptr<const KvCodec>> CreateCodec(const CodecOptions& options,
                                                           const kernels::KvShape& shape);

// Fills the files of `options.profile` that it does not name from a model's folder. Profile oscar:
// k_rotation_*.pt (or .safetensors) and v_rotation_*; none found: sets data_free; exactly one of
// the two is an error. Profile shaped: codec_shaped*.safetensors but for codec_shaped-sym*, which
// must exist; profile shaped-sym: codec_shaped-sym*.safetensors, else a fit of profile shaped,
// which serves both. Several candidates: an error that names them.
absl::Status FindCodecFiles(const std::string& model_dir, CodecOptions* options);

}  // namespace oscarkv
