// y = x M for the 16 rows of a warp on tensor cores.
//
// M is held as two terms, M = high + low, in the rows' own type, so that x needs no conversion:
// bf16 gives 16 significant bits, fp16 22. A term is stored as its transpose, [n][k], in 64-wide
// halves of k: rows of 128 bytes whose 16-byte chunks stand at chunk ^ (n & 7), which is wgmma's
// 128-byte swizzle and lets ldmatrix read without bank conflicts.
#pragma once

#include "kernels/q2_encode/warp_ops.cuh"

namespace oscarkv::kernels::cuda {

// Byte of element [k][n] in a term.
template <int kD>
inline __device__ int PreparedOffset(int k, int n) {
  return (k / 64) * kD * 128 + n * 128 + (((k % 64) / 8) ^ (n & 7)) * 16 + (k % 8) * 2;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A 128-byte-swizzled tile for wgmma, 8 rows = 1024 bytes.
inline __device__ uint64_t TileDescriptor(uint32_t address) {
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

#define OSCARKV_ACC4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define OSCARKV_ACC16(i) \
  OSCARKV_ACC4(i), OSCARKV_ACC4(i + 4), OSCARKV_ACC4(i + 8), OSCARKV_ACC4(i + 12)
#define OSCARKV_WGMMA128(type)                                                               \
  asm volatile(                                                                              \
      "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"                                              \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                           \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43," \
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"    \
      " {%64,%65,%66,%67}, %68, p, 1, 1, 0;}"                                                \
      : OSCARKV_ACC16(0), OSCARKV_ACC16(16), OSCARKV_ACC16(32), OSCARKV_ACC16(48)            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define OSCARKV_WGMMA64(type)                                                                \
  asm volatile(                                                                              \
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"                                              \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                            \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"           \
      : OSCARKV_ACC16(0), OSCARKV_ACC16(16)                                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

// Four warps together: c = (accumulate ? c : 0) + a b; each has 16 of the 64 rows.
template <bool kFp16>
inline __device__ void Wgmma(float (&c)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  if constexpr (kFp16) {
    OSCARKV_WGMMA128("f16");
  } else {
    OSCARKV_WGMMA128("bf16");
  }
}
template <bool kFp16>
inline __device__ void Wgmma(float (&c)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  if constexpr (kFp16) {
    OSCARKV_WGMMA64("f16");
  } else {
    OSCARKV_WGMMA64("bf16");
  }
}
#undef OSCARKV_WGMMA64
#undef OSCARKV_WGMMA128
#undef OSCARKV_ACC16
#undef OSCARKV_ACC4

// The tensor cores work for one warpgroup of the thread block at a time. If several shared them,
// all would finish together and then leave them idle together. Nothing but speed hangs on it.
class TensorCoreTurn {
 public:
  // `lock`: shared-memory address of a word that is 0 while nobody has the turn.
  __device__ explicit TensorCoreTurn(uint32_t lock) : lock_(lock) {
    if (threadIdx.x % 128 == 0) {
      uint32_t taken;
      do {
        asm volatile("atom.relaxed.cta.shared::cta.exch.b32 %0, [%1], 1;"
                     : "=r"(taken)
                     : "r"(lock_)
                     : "memory");
      } while (taken != 0);
    }
    asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
  }
  __device__ ~TensorCoreTurn() {
    if (threadIdx.x % 128 == 0)
      asm volatile("st.relaxed.cta.shared::cta.b32 [%0], 0;" ::"r"(lock_) : "memory");
  }
  TensorCoreTurn(const TensorCoreTurn&) = delete;
  TensorCoreTurn& operator=(const TensorCoreTurn&) = delete;

 private:
  uint32_t lock_;
};

// c[4 nt + 2 r + e] = y of row g + 8 r, channel 8 nt + 2 j + e. x: the rows' fragments, one for
// each 16 channels. `matrix`: shared-memory address of the two terms, high first, 1024-byte
// aligned; `lock` as for TensorCoreTurn. The four warps of a warpgroup call it together.
template <int kD, bool kFp16>
__device__ __forceinline__ void Transform(const uint32_t (&x)[kD / 16][4], uint32_t matrix,
                                          uint32_t lock, float (&c)[kD / 2]) {
  const TensorCoreTurn turn(lock);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int term = 1; term >= 0; --term) {  // the small term first
#pragma unroll
    for (int ks = 0; ks < kD / 16; ++ks) {
      const uint32_t at = matrix + term * (kD * kD * 2) + (ks / 4) * (kD * 128) + (ks % 4) * 32;
      Wgmma<kFp16>(c, x[ks], TileDescriptor(at), term == 0 || ks > 0);
    }
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

#else

template <int kD, bool kFp16>
__device__ __forceinline__ void Transform(const uint32_t (&x)[kD / 16][4], uint32_t matrix,
                                          uint32_t, float (&c)[kD / 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) c[i] = 0;
#pragma unroll
  for (int term = 1; term >= 0; --term) {
#pragma unroll
    for (int nt = 0; nt < kD / 8; ++nt) {
#pragma unroll
      for (int ks = 0; ks < kD / 16; ks += 2) {
        // Four matrices: 32 channels k from 16 ks, of 8 channels n.
        const int n = 8 * nt + lane % 8, chunk = (2 * ks + lane / 8) % 8;
        uint32_t b[4];
        LoadMatrices(b, matrix + term * (kD * kD * 2) + (ks / 4) * (kD * 128) + n * 128 +
                            ((chunk ^ (n & 7)) * 16));
        float(&tile)[4] = *reinterpret_cast<float(*)[4]>(c + 4 * nt);
        for (int i = 0; i < 2; ++i) {
          if constexpr (kFp16) {
            MmaFp16(tile, x[ks + i], b[2 * i], b[2 * i + 1]);
          } else {
            MmaBf16(tile, x[ks + i], b[2 * i], b[2 * i + 1]);
          }
        }
      }
    }
  }
}

#endif

}  // namespace oscarkv::kernels::cuda
