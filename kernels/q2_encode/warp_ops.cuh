// Operations on pairs of 16-bit values that the encoder needs, for sm_80 and sm_90a.
#pragma once

#include "kernels/cuda_primitives.cuh"

namespace oscarkv::kernels::cuda {

// Larger and smaller halves of bf16 magnitudes (sign bit 0). On sm_90 as integers, which orders
// NaN above Inf; before, as bf16 with NaN winning both.
inline __device__ uint32_t MaxMagnitude(uint32_t a, uint32_t b) {
  uint32_t r;
#if OSCARKV_SM90
  asm("max.u16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#else
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
  return r;
}
inline __device__ uint32_t MinMagnitude(uint32_t a, uint32_t b) {
  uint32_t r;
#if OSCARKV_SM90
  asm("min.u16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#else
  asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
  return r;
}
// Of |a| and |b| as bf16; NaN wins both.
inline __device__ uint32_t MaxOfMagnitudes(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("{.reg .b32 x, y; abs.bf16x2 x, %1; abs.bf16x2 y, %2; max.NaN.bf16x2 %0, x, y;}"
      : "=r"(r)
      : "r"(a), "r"(b));
  return r;
}
inline __device__ uint32_t MinOfMagnitudes(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("{.reg .b32 x, y; abs.bf16x2 x, %1; abs.bf16x2 y, %2; min.NaN.bf16x2 %0, x, y;}"
      : "=r"(r)
      : "r"(a), "r"(b));
  return r;
}
// Of bf16 values; a NaN loses.
inline __device__ uint32_t MaxBf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
inline __device__ uint32_t MinBf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("min.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Halves of ones where a >= b as bf16, else of zeros.
inline __device__ uint32_t AtLeastMask(uint32_t a, uint32_t b) {
#if OSCARKV_SM90
  uint32_t r;
  asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
#else
  const auto half = [](uint32_t x, uint32_t y) {  // values in the upper half
    return __uint_as_float(x & 0xffff0000u) >= __uint_as_float(y & 0xffff0000u);
  };
  return (half(a, b) ? 0xffff0000u : 0) | (half(a << 16, b << 16) ? 0xffffu : 0);
#endif
}

// a + b as bf16, on the pipe of multiply-adds. The sign is that of the exact sum (bf16 has
// subnormals), and +0 wins over -0.
inline __device__ uint32_t AddBf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return r;
}
// Bytes of ones where a half is negative, in the order a low, b low, a high, b high.
inline __device__ uint32_t SignBytes(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, 0xfbd9;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
inline __device__ uint32_t Fp16ToBf16(uint32_t x) {
  const float2 v = UnpackFp16(x);
  return PackBf16(v.x, v.y);
}
// The lower, resp. upper, halves of a and b: a's in the lower half.
inline __device__ uint32_t LowHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
inline __device__ uint32_t HighHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}

}  // namespace oscarkv::kernels::cuda
