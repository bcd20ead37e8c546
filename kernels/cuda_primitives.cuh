// Instructions that CUDA C++ has no function for. Device code only, sm_80 and up; what only sm_90
// has stands behind OSCARKV_SM90.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define OSCARKV_SM90 1
#else
#define OSCARKV_SM90 0
#endif

namespace oscarkv::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// One 16x8x16 product: c += a b. Of lane 4g+j (g in 0..7, j in 0..3), two elements to a register:
//   a[0..3]: (row, k) = (g, 2j), (g + 8, 2j), (g, 2j + 8), (g + 8, 2j + 8), each with k + 1
//   b[0..1]: (k, column) = (2j, g), (2j + 8, g), each with k + 1
//   c[0..3]: (row, column) = (g, 2j), (g, 2j + 1), (g + 8, 2j), (g + 8, 2j + 1)
__device__ __forceinline__ void MmaFp16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// One 16x8x32 (16x8x16) product of bytes, a unsigned and b signed: c = a b. Four elements to a
// register; of lane 4g+j a[0..3]: (row, k) = (g, 4j), (g + 8, 4j), (g, 4j + 16), (g + 8, 4j + 16),
// b0, b1: (k, column) = (4j, g), (4j + 16, g), each with k + 1 to k + 3; c as above.
__device__ __forceinline__ void MmaBytes32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%10,%10,%10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}
__device__ __forceinline__ void MmaBytes16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5},{%6},{%7,%7,%7,%7};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a0), "r"(a1), "r"(b0), "r"(0));
}

// Transposes an 8x8 matrix of 16-bit elements: lane 4g+j gives (g, 2j), (g, 2j + 1) and gets
// (2j, g), (2j + 1, g).
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void LoadMatrices(uint32_t (&a)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&a)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared)
               : "memory");
}

// 2^x and log2(x), to about 2 ulp; 2^-inf = 0, log2(0) = -inf.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Log2(float x) {
  float y;
  asm("lg2.approx.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to a register of two 16-bit elements, `low` in the lower half.
__device__ __forceinline__ uint32_t PackFp16(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&h);
}
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&h);
}
__device__ __forceinline__ float2 UnpackFp16(uint32_t x) {
  return __half22float2(*reinterpret_cast<const __half2*>(&x));
}
__device__ __forceinline__ float2 UnpackBf16(uint32_t x) {
  return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}

// 16 bytes from global to shared memory in the background; `bytes` below 16 fills up with zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most n of this thread's committed groups are under way.
template <int n>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Early launches (cuda_launch.cuh): what comes behind in the stream may start although this kernel
// still runs (its blocks then wait by WaitForPriorKernels); what came before has ended and its
// writes are seen. Without effect before sm_90.
__device__ __forceinline__ void LetNextKernelStart() {
#if OSCARKV_SM90
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForPriorKernels() {
#if OSCARKV_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if OSCARKV_SM90
__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Orders this thread's ordinary accesses to shared memory before later ones of the copy engine.
__device__ __forceinline__ void FenceAsyncCopies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ uint64_t EvictFirstPolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0,1.0;" : "=l"(policy));
  return policy;
}
// One contiguous copy by the copy engine, which completes a phase of `barrier` (one arrival).
__device__ __forceinline__ void CopyBulk(uint32_t shared, const void* global, int bytes,
                                         uint32_t barrier, uint64_t policy) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(barrier), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0],[%1],%2,[%3],%4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
// Into the L2 cache, in the background; multiples of 16 bytes.
__device__ __forceinline__ void PrefetchBulk(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0],%1;" ::"l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done,[%0],%1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
#endif

}  // namespace oscarkv::kernels::cuda
