#include "codec/oscar_codec.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/fingerprint.h"
#include "codec/page_layer.h"
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
  return EncodeStatus(status, layer, shape().head_dim);
}

absl::Status OscarCodec::DecodeLayer(int, const uint8_t* page_layer,
                                     kernels::Bf16* block_layer) const {
  DecodePageLayer(shape(), page_layer, block_layer);
  return absl::OkStatus();
}

}  // namespace oscarkv
