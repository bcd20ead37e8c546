// Profile oscar: orthogonal rotations per layer (or layer and kv head), clip at a quantile of the
// row, asymmetric min-max at 2 bits (kernels/q2_encode). Faithful to OSCAR's prefill writer; see
// docs/block_format.md.
#pragma once

#include <atomic>
#include <string>

#include "codec/codec.h"
#include "codec/rotation_zoo.h"

namespace oscarkv {

// Encoding from several threads at once is safe.
class OscarCodec final : public KvCodec {
 public:
  // `origin`: where the rotations come from, for Describe(). Rotations are complete and of `shape`;
  // clips are in (0, 1].
  OscarCodec(RotationSet key_rotations, RotationSet value_rotations, float key_clip,
             float value_clip, bool data_free, std::string origin);

  Profile profile() const override { return Profile::kOscar; }
  const kernels::KvShape& shape() const override { return key_rotations_.shape(); }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  std::string Describe() const override;
  bool data_free() const override { return data_free_; }
  const float* KeyRotation(int layer, int kv_head) const override {
    return key_rotations_.At(layer, kv_head);
  }
  const float* ValueRotation(int layer, int kv_head) const override {
    return value_rotations_.At(layer, kv_head);
  }
  float ClipRatio(kernels::Side side) const override { return clip_[static_cast<int>(side)]; }
  absl::Status EncodeLayer(int layer, const kernels::Bf16* block_layer,
                           uint8_t* page_layer) const override;
  absl::Status DecodeLayer(int layer, const uint8_t* page_layer,
                           kernels::Bf16* block_layer) const override;
  uint64_t clamped_rows() const override { return clamped_rows_.load(std::memory_order_relaxed); }

 private:
  const RotationSet key_rotations_, value_rotations_;
  const float clip_[2];  // K, V
  const bool data_free_;
  const std::string origin_;
  const Sha256Digest fingerprint_;
  mutable std::atomic<uint64_t> clamped_rows_{0};
};

}  // namespace oscarkv
