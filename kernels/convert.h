// Conversions between fp32 and bf16 over arrays; internal to this room.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace oscarkv::kernels {

// y[i] = ToBf16(x[i]).
void ConvertToBf16(const float* x, int64_t n, Bf16* y);
// y[i] = ToFloat(x[i]).
void ConvertToFloat(const Bf16* x, int64_t n, float* y);

}  // namespace oscarkv::kernels
