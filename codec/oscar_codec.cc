#include "codec/oscar_codec.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/fingerprint.h"
#include "kernels/q2_encode/op.h"

namespace oscarkv {

OscarCodec::OscarCodec(RotationSet key_rotations, RotationSet value_rotations, float key_clip,
                       float value_clip, bool data_free, std::string origin)
    : key_rotations_(std::move(key_rotations)),
      value_rotations_(std::move(value_rotations)),
      clip_{key_clip, value_clip},
      data_free_(data_free),
      origin_(std::move(origin)),
      fingerprint_(CodecFingerprint(Profile::kOscar, key_rotations_.shape(), &key_rotations_,
                                    &value_rotations_, key_clip, value_clip)) {}

std::string OscarCodec::Describe() const {
  return absl::StrCat("oscar, ", origin_, ", clip K ", clip_[0], " V ", clip_[1]);
}

absl::Status OscarCodec::EncodeLayer(int layer, const kernels::Bf16* block_layer,
                                     uint8_t* page_layer) const {
  kernels::EncodeStats stats;
  const kernels::KernelStatus status = kernels::EncodeBlockLayer(
      kernels::Backend::kCpu, shape(), block_layer, clip_, page_layer, &stats);
  if (stats.clamped_fp16 > 0)
    clamped_rows_.fetch_add(stats.clamped_fp16, std::memory_order_relaxed);
  switch (status) {
    case kernels::KernelStatus::kOk:
      return absl::OkStatus();
    case kernels::KernelStatus::kNonFinite:
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, ": K or V holds Inf or NaN, which has no 2-bit code"));
    case kernels::KernelStatus::kUnsupported:
    case kernels::KernelStatus::kDevice:  // not from this backend
      break;
  }
  return absl::InternalError(
      absl::StrCat("layer ", layer, ": no encode kernel for head_dim ", shape().head_dim));
}

absl::Status OscarCodec::DecodeLayer(int layer, const uint8_t* page_layer,
                                     kernels::Bf16* block_layer) const {
  const int d = shape().head_dim;
  const size_t page_head_bytes = kernels::PageHeadBytes(d);
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    kernels::Bf16* rows =
        block_layer + (side == kernels::Side::kValue ? shape().Bf16SideElements() : 0);
    for (int h = 0; h < shape().num_kv_heads; ++h) {
      kernels::DecodePageHeadBf16(kernels::Backend::kCpu, d, side, page_layer + h * page_head_bytes,
                                  rows, d);
      rows += kernels::kPageTokens * d;
    }
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
