#include "kernels/types.h"

namespace oscarkv::kernels {

float Fp16ToFloat(Fp16 v) {
  const uint32_t sign = uint32_t{v & 0x8000u} << 16;
  const uint32_t exponent = v >> 10 & 0x1f;
  const uint32_t mantissa = v & 0x3ff;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in fp32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

Fp16 FloatToFp16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<Fp16>(sign | 0x7e00);
  if (magnitude >= 0x477ff000)
    return static_cast<Fp16>(sign | 0x7bff);  // 65520 and above would round to Inf
  if (magnitude < 0x38800000) {
    // Below 2^-14. An fp32 in [0.5, 1) has the unit 2^-24 of fp16's subnormals, so the addition
    // does the rounding.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<Fp16>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
  return static_cast<Fp16>(sign | rounded >> 13);
}

}  // namespace oscarkv::kernels
