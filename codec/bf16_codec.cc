#include "codec/bf16_codec.h"

#include "codec/fingerprint.h"

namespace oscarkv {

Bf16Codec::Bf16Codec(const kernels::KvShape& shape)
    : shape_(shape),
      fingerprint_(CodecFingerprint(Profile::kBf16, shape, nullptr, nullptr, 0, 0)) {}

absl::Status Bf16Codec::EncodeLayer(int, const kernels::Bf16*, uint8_t*) const {
  return absl::FailedPreconditionError("profile bf16 has no 2-bit pages to encode");
}
absl::Status Bf16Codec::DecodeLayer(int, const uint8_t*, kernels::Bf16*) const {
  return absl::FailedPreconditionError("profile bf16 has no 2-bit pages to decode");
}

}  // namespace oscarkv
