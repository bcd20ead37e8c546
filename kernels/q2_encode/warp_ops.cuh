// Instructions of a warp that the encoder needs, for sm_80 and sm_90a. Vectors of two 16-bit values
// are uint32_t. Lane 4 g + j of a warp, g in 0..7, j in 0..3.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace oscarkv::kernels::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define OSCARKV_SM90 1
#else
#define OSCARKV_SM90 0
#endif

inline __device__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes to shared memory without passing registers; 16 zeros if !valid (nothing is read then).
inline __device__ void CopyAsync16(uint32_t to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
inline __device__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
inline __device__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit values; lane 8 i + r gives the address of row r of matrix i. A lane
// gets values 2 j, 2 j + 1 of row g of each.
inline __device__ void LoadMatrices(uint32_t address, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
// Transposes an 8x8 matrix of 16-bit values, held as LoadMatrices gives it.
inline __device__ uint32_t Transpose8x8(uint32_t m) {
  uint32_t t;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(m));
  return t;
}

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

// Two fp32 to bf16, the first in the lower half.
inline __device__ uint32_t PackBf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
inline __device__ uint32_t PackFp16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
inline __device__ uint32_t Fp16ToBf16(uint32_t x) {
  const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&x));
  return PackBf16(v.x, v.y);
}
// The lower, resp. upper, halves of a and b: a's in the lower half.
inline __device__ uint32_t LowHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
inline __device__ uint32_t HighHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}
inline __device__ float LowBf16(uint32_t x) {
  return __uint_as_float(x << 16);
}
inline __device__ float HighBf16(uint32_t x) {
  return __uint_as_float(x & 0xffff0000u);
}

// c[16 x 8] += a[16 x 16] b[16 x 8], mma.sync's fragments.
template <bool kFp16>
inline __device__ void Mma16x8x16(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kFp16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace oscarkv::kernels::cuda
