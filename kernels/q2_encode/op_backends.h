// The implementations behind op.h; internal.
#pragma once

#include <cmath>

#include "kernels/q2_encode/op.h"

namespace oscarkv::kernels {

// True where fp16 cannot hold v: FloatToFp16 then clamps (65520 and above would round to Inf).
inline bool ExceedsFp16(float v) {
  return !(std::fabs(v) < 65520.0f);
}

namespace ref {
KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats);
void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows);
void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride);
}  // namespace ref

namespace cpu {
KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats);
void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows);
void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride);
}  // namespace cpu

}  // namespace oscarkv::kernels
