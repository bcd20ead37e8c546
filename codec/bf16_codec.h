// Profile bf16: no transform, no pages; every block is stored as it is.
#pragma once

#include <string>

#include "codec/codec.h"

namespace oscarkv {

class Bf16Codec final : public KvCodec {
 public:
  explicit Bf16Codec(const kernels::KvShape& shape);

  Profile profile() const override { return Profile::kBf16; }
  const kernels::KvShape& shape() const override { return shape_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  std::string Describe() const override { return "bf16, unquantised"; }
  bool data_free() const override { return false; }
  const float* KeyRotation(int layer, int kv_head) const override { return nullptr; }
  const float* ValueRotation(int layer, int kv_head) const override { return nullptr; }
  absl::Status EncodeLayer(int layer, const kernels::Bf16* block_layer,
                           uint8_t* page_layer) const override;
  absl::Status DecodeLayer(int layer, const uint8_t* page_layer,
                           kernels::Bf16* block_layer) const override;
  uint64_t clamped_rows() const override { return 0; }

 private:
  const kernels::KvShape shape_;
  const Sha256Digest fingerprint_;
};

}  // namespace oscarkv
