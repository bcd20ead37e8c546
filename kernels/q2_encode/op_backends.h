// The implementations behind op.h; internal.
#pragma once

#include <cmath>

#include "kernels/q2_encode/op.h"
#include "kernels/q2_encode/shaped.h"

namespace oscarkv::kernels {

// True where fp16 cannot hold v: FloatToFp16 then clamps (65520 and above would round to Inf).
inline bool ExceedsFp16(float v) {
  return !(std::fabs(v) < 65520.0f);
}

inline constexpr float kLargestFp16 = 65504.0f;

namespace ref {
KernelStatus EncodePageHeadShaped(const ShapedArgs& args, EncodeStats* stats);
KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats);
void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows,
                    bool offsets = true);
void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride, bool offsets = true);
}  // namespace ref

namespace cpu {
KernelStatus EncodePageHeadShaped(const ShapedArgs& args, EncodeStats* stats);
KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats);
void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows,
                    bool offsets = true);
void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride, bool offsets = true);
}  // namespace cpu

}  // namespace oscarkv::kernels
