#include "codec/page_layer.h"

#include "absl/strings/str_cat.h"
#include "kernels/q2_encode/op.h"

namespace oscarkv {

void DecodePageLayer(const kernels::KvShape& shape, const uint8_t* page_layer,
                     kernels::Bf16* block_layer) {
  const int d = shape.head_dim;
  const size_t page_head_bytes = kernels::PageHeadBytes(d, shape.offsets);
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    kernels::Bf16* rows =
        block_layer + (side == kernels::Side::kValue ? shape.Bf16SideElements() : 0);
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      kernels::DecodePageHeadBf16(kernels::Backend::kCpu, d, side, page_layer + h * page_head_bytes,
                                  rows, d, shape.offsets);
      rows += kernels::kPageTokens * d;
    }
  }
}

absl::Status EncodeStatus(kernels::KernelStatus status, int layer, int head_dim) {
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
      absl::StrCat("layer ", layer, ": no encode kernel for head_dim ", head_dim));
}

}  // namespace oscarkv
