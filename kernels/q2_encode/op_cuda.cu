// Rows to Q2P64 pages on a GPU.
//
// A warp encodes 16 tokens of one head (a token block of the page), the four warps of a warpgroup
// the 64 tokens of a page-head. A lane holds, of rows g and g + 8, the channels 8 nt + 2 j + e:
// ldmatrix gives rows that way, and the tensor cores both take and return them so. Those 64 values
// are exactly the lane's words of K's layout; V's is the same transposed in 8x8 tiles, and since a
// tile's 16-bit elements have room for the codes of one lane's 8 tiles, that is one movmatrix per
// word. Everything between is in registers: order statistic (largest.cuh), thresholds of the codes
// (quantise.cuh). A codec that chooses codes by feedback along the row replaces Quantise alone.
//
// Warps run on their own: each copies its next 16 rows to shared memory while it works on these
// (cp.async), so there is no barrier in the loop; only wgmma makes the four warps of a warpgroup
// meet. The grid is persistent: the transform is loaded once per thread block, or when the head
// changes if each head has its own.
#include <cuda_runtime.h>

#include "kernels/cuda_device.h"
#include "kernels/q2_encode/largest.cuh"
#include "kernels/q2_encode/op_cuda.h"
#include "kernels/q2_encode/quantise.cuh"
#include "kernels/q2_encode/transform.cuh"
#include "kernels/q2_encode/warp_ops.cuh"

namespace oscarkv::kernels::cuda {
namespace {

constexpr int kBlockRows = 16;  // rows of a warp
constexpr int kWarps = 4;       // of a warpgroup: kPageTokens / kBlockRows
constexpr int kStages = 2;

struct EncodeParams {
  EncodeBatchArgs args;
  int kth = 0;    // the clip threshold is the kth largest magnitude; 0: no clip
  int units = 0;  // blocks * heads
};

// Where one warpgroup's unit, 64 rows of a head, stands.
struct Unit {
  int block, head;
  int64_t row;  // element of its first row
  int rows;     // that exist; 0: leave out
};

__device__ __forceinline__ Unit UnitAt(const EncodeBatchArgs& args, int index, int units) {
  Unit unit;
  unit.block = index / args.num_kv_heads;
  unit.head = index - unit.block * args.num_kv_heads;
  unit.row = int64_t{kPageTokens} * unit.block * args.row_stride;
  unit.rows = 0;
  if (index >= units) return unit;
  unit.rows = kPageTokens;
  if (args.row_begin != nullptr) {
    unit.row = args.row_begin[unit.block];
    if (unit.row < 0) unit.rows = 0;
  } else {
    unit.rows = static_cast<int>(
        min(int64_t{kPageTokens}, args.num_tokens - int64_t{kPageTokens} * unit.block));
  }
  unit.row += unit.head * args.head_stride;
  return unit;
}

template <int kD>
struct Tile {
  static constexpr int kPitch =
      2 * kD + 16;  // bytes; the padding keeps ldmatrix off bank conflicts
  static constexpr int kBytes = kBlockRows * kPitch;
  static constexpr int kChunks = kD / 8;             // 16-byte chunks of a row
  static constexpr int kRowsPerCopy = 32 / kChunks;  // that one instruction of a warp copies
  static constexpr int kCopies = kBlockRows / kRowsPerCopy;
};

// Starts copying the warp's rows; rows that do not exist become zeros.
template <int kD>
__device__ __forceinline__ void StartCopy(const EncodeBatchArgs& args, const Unit& unit,
                                          int token_block, uint32_t stage) {
  using T = Tile<kD>;
  const int lane = threadIdx.x % 32;
  const int first = lane / T::kChunks, chunk = lane % T::kChunks;
  const uint16_t* from = static_cast<const uint16_t*>(args.rows) + unit.row +
                         (kBlockRows * token_block + first) * args.row_stride + 8 * chunk;
  const uint32_t to = stage + first * T::kPitch + 16 * chunk;
#pragma unroll
  for (int i = 0; i < T::kCopies; ++i) {
    const int row = kBlockRows * token_block + first + i * T::kRowsPerCopy;
    const bool valid = row < unit.rows;
    CopyAsync16(to + i * T::kRowsPerCopy * T::kPitch,
                valid ? from + i * T::kRowsPerCopy * args.row_stride : args.rows, valid);
  }
}

// The rows of a stage as fragments of 16 channels.
template <int kD>
__device__ __forceinline__ void LoadFragments(uint32_t stage, uint32_t (&x)[kD / 16][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = stage + (lane % 16) * Tile<kD>::kPitch + (lane / 16) * 16;
#pragma unroll
  for (int ks = 0; ks < kD / 16; ++ks) LoadMatrices(at + 32 * ks, x[ks]);
}

// y as pairs of bf16: y[r][nt] holds channels 8 nt + 2 j + e of row g + 8 r.
template <int kD>
using Rows = uint32_t[2][kD / 8];

template <int kD, bool kTransform>
__device__ __forceinline__ void LoadRows(bool fp16, uint32_t stage, uint32_t matrix, Rows<kD>& y) {
  uint32_t x[kD / 16][4];
  LoadFragments<kD>(stage, x);
  if constexpr (kTransform) {
    float c[kD / 2];
    if (fp16) {
      Transform<kD, true>(x, matrix, c);
    } else {
      Transform<kD, false>(x, matrix, c);
    }
#pragma unroll
    for (int nt = 0; nt < kD / 8; ++nt) {
      y[0][nt] = PackBf16(c[4 * nt], c[4 * nt + 1]);
      y[1][nt] = PackBf16(c[4 * nt + 2], c[4 * nt + 3]);
    }
  } else {
#pragma unroll
    for (int ks = 0; ks < kD / 16; ++ks) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i % 2][2 * ks + i / 2] = fp16 ? Fp16ToBf16(x[ks][i]) : x[ks][i];
    }
  }
}

// The rows to `rotated`, by way of the stage so that whole rows are written.
template <int kD>
__device__ __forceinline__ void StoreRows(const EncodeBatchArgs& args, const Unit& unit,
                                          int token_block, uint8_t* stage, const Rows<kD>& y) {
  using T = Tile<kD>;
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  __syncwarp();  // everybody has read the rows that stood here
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int nt = 0; nt < kD / 8; ++nt) {
      *reinterpret_cast<uint32_t*>(stage + (g + 8 * r) * T::kPitch + 16 * nt + 4 * j) = y[r][nt];
    }
  }
  __syncwarp();
  const int first = lane / T::kChunks, chunk = lane % T::kChunks;
#pragma unroll
  for (int i = 0; i < T::kCopies; ++i) {
    const int row = first + i * T::kRowsPerCopy;
    const uint4 v = *reinterpret_cast<const uint4*>(stage + row * T::kPitch + 16 * chunk);
    const int token = kBlockRows * token_block + row;
    if (token < unit.rows) {
      *reinterpret_cast<uint4*>(args.rotated + unit.row + token * args.row_stride + 8 * chunk) = v;
    }
  }
}

// What a lane knows of its rows g and g + 8 once they are quantised.
template <int kD>
struct Codes {
  uint32_t words[kD / 64][2];  // of the lane's slot
  uint32_t scales, offsets;    // fp16, row g in the low half
  bool nonfinite[2], clamped[2];
};

// The largest and smallest value of rows g (low halves) and g + 8 (high halves).
template <int kD>
__device__ __forceinline__ void RowRanges(const Rows<kD>& y, uint32_t* largest,
                                          uint32_t* smallest) {
  uint32_t hi[2], lo[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    hi[r] = lo[r] = y[r][0];
#pragma unroll
    for (int nt = 1; nt < kD / 8; ++nt) {
      hi[r] = MaxBf16(hi[r], y[r][nt]);
      lo[r] = MinBf16(lo[r], y[r][nt]);
    }
  }
  uint32_t h = MaxBf16(LowHalves(hi[0], hi[1]), HighHalves(hi[0], hi[1]));
  uint32_t l = MinBf16(LowHalves(lo[0], lo[1]), HighHalves(lo[0], lo[1]));
#pragma unroll
  for (int lane_mask = 1; lane_mask <= 2; lane_mask *= 2) {
    h = MaxBf16(h, __shfl_xor_sync(~0u, h, lane_mask));
    l = MinBf16(l, __shfl_xor_sync(~0u, l, lane_mask));
  }
  *largest = h;
  *smallest = l;
}

template <int kD, int kTop, Side kSide>
__device__ __forceinline__ void Quantise(const Rows<kD>& y, int kth, Codes<kD>* codes) {
  const int lane = threadIdx.x % 32, j = lane % 4;
  uint32_t magnitudes[2][kD / 8];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int nt = 0; nt < kD / 8; ++nt) magnitudes[r][nt] = y[r][nt] & 0x7fff7fffu;
  }
  uint32_t top, clips, largest, smallest;
  if constexpr (kTop > 0) {
    clips = KthLargest<kTop>(magnitudes, &top);
  } else {
    clips = KthLargestByBits(magnitudes, kth, &top);
    if (kth == 0) clips = 0x7f807f80u;
  }
  RowRanges<kD>(y, &largest, &smallest);

  // Rows g and g + 8: lane j < 3 finds threshold j + 1 of both; all lanes need all.
  uint32_t own[2], halves[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto part = [r](uint32_t x) { return r == 0 ? LowBf16(x) : HighBf16(x); };
    const float clip = part(clips);
    // Both ends against both: the clip may be below every |y| of one sign. -0 becomes +0.
    const float lo = fminf(fmaxf(part(smallest), -clip), clip) + 0.0f;
    const float hi = fminf(fmaxf(part(largest), -clip), clip);
    const RowScale row = ScaleOf(lo, hi);
    codes->clamped[r] = row.clamped;
    codes->nonfinite[r] = (r == 0 ? top & 0xffff : top >> 16) >= 0x7f80;
    halves[0][r] = __float_as_uint(row.scale);
    halves[1][r] = __float_as_uint(row.offset);
    own[r] = __float_as_uint(CodeThreshold(min(j, 2) + 1, row, lo, hi));
  }
  codes->scales = PackFp16(__uint_as_float(halves[0][0]), __uint_as_float(halves[0][1]));
  codes->offsets = PackFp16(__uint_as_float(halves[1][0]), __uint_as_float(halves[1][1]));
  const uint32_t both = HighHalves(own[0], own[1]);
  uint32_t t[2][3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint32_t threshold = __shfl_sync(~0u, both, (lane & ~3) | i);
    t[0][i] = LowHalves(threshold, threshold);
    t[1][i] = HighHalves(threshold, threshold);
  }

#pragma unroll
  for (int ch = 0; ch < kD / 64; ++ch) {
    codes->words[ch][0] = codes->words[ch][1] = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const uint32_t v = y[r][8 * ch + 2 * p + u];
          const uint32_t bit1 = AtLeastMask(v, t[r][1]);
          const uint32_t bit0 = AtLeastMask(v, (bit1 & t[r][2]) | (~bit1 & t[r][0]));
          // K: word of the row, bits by the channel. V: word of the channel, bits by the row.
          const int word = kSide == Side::kKey ? r : u;
          const int shift = 8 * (kSide == Side::kKey ? u : r) + 2 * p;
          codes->words[ch][word] |= CodeBits(bit1, bit0) & (0x00030003u << shift);
        }
      }
    }
    if constexpr (kSide == Side::kValue) {
#pragma unroll
      for (uint32_t& word : codes->words[ch]) word = Transpose8x8(word);
    }
  }
}

template <int kD, Side kSide>
__device__ __forceinline__ void StoreCodes(const EncodeBatchArgs& args, const Unit& unit,
                                           int token_block, const Codes<kD>& codes) {
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  constexpr int kSlotBytes = kD / 8;
  constexpr int kSideIndex = static_cast<int>(kSide);
  uint8_t* page =
      args.pages +
      (args.page_begin != nullptr ? args.page_begin[unit.block] : unit.block * args.page_stride) +
      unit.head * static_cast<int64_t>(PageHeadBytes(kD));
  uint8_t* slot = page + kSideIndex * CodesBytes(kD) + token_block * (32 * kSlotBytes) +
                  Slot(g, j) * kSlotBytes;
  if constexpr (kD == 128) {
    *reinterpret_cast<uint4*>(slot) =
        make_uint4(codes.words[0][0], codes.words[0][1], codes.words[1][0], codes.words[1][1]);
  } else {
    *reinterpret_cast<uint2*>(slot) = make_uint2(codes.words[0][0], codes.words[0][1]);
  }
  if (j < 2) {  // MetaIndex of rows g and g + 8 are neighbours
    uint8_t* plane = page + MetaOffset(kD) + (2 * kSideIndex + j) * 2 * kPageTokens;
    *reinterpret_cast<uint32_t*>(plane + 2 * MetaIndex(kBlockRows * token_block + g)) =
        j == 0 ? codes.scales : codes.offsets;
  }
}

// Seldom anything to do: counts rows, each by the first of its four lanes.
template <int kD>
__device__ __forceinline__ void Report(const EncodeBatchArgs& args, const Unit& unit,
                                       int token_block, const Codes<kD>& codes) {
  const int lane = threadIdx.x % 32;
  if (!__any_sync(
          ~0u, codes.nonfinite[0] || codes.nonfinite[1] || codes.clamped[0] || codes.clamped[1])) {
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane % 4 != 0 || kBlockRows * token_block + lane / 4 + 8 * r >= unit.rows) continue;
    if (codes.nonfinite[r]) {
      if (args.counters != nullptr) atomicAdd(&args.counters->nonfinite_rows, 1ull);
      if (args.block_nonfinite != nullptr) args.block_nonfinite[unit.block] = 1;
    } else if (codes.clamped[r] && args.pages != nullptr && unit.rows == kPageTokens &&
               args.counters != nullptr) {
      atomicAdd(&args.counters->clamped_fp16, 1ull);
    }
  }
}

template <int kD>
__device__ __forceinline__ void LoadTransform(const EncodeBatchArgs& args, int head,
                                              uint32_t matrix) {
  const uint8_t* from =
      static_cast<const uint8_t*>(args.transform) + head * args.transform_head_stride;
  for (int i = threadIdx.x; i < static_cast<int>(PreparedTransformBytes(kD)) / 16; i += blockDim.x)
    CopyAsync16(matrix + 16 * i, from + 16 * i);
  CommitCopies();
  WaitCopies<0>();
  // wgmma reads shared memory through another path than ordinary loads.
#if OSCARKV_SM90
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
}

// Units of a thread block: with one transform per head, heads are the grid's second dimension, so
// that a block keeps its matrix. Each warpgroup takes every stride-th unit.
template <int kD, int kTop, Side kSide, bool kTransform>
__device__ __forceinline__ void EncodeLoop(const EncodeParams& params, uint8_t* shared) {
  const EncodeBatchArgs& args = params.args;
  const int warp = threadIdx.x / 32, token_block = warp % kWarps;
  constexpr int kMatrixBytes = kTransform ? static_cast<int>(PreparedTransformBytes(kD)) : 0;
  const uint32_t matrix = SharedAddress(shared);
  uint8_t* stages = shared + kMatrixBytes + warp * kStages * Tile<kD>::kBytes;
  const bool fp16 = args.row_type == RowType::kFp16;

  const bool per_head = gridDim.y > 1;
  if constexpr (kTransform) LoadTransform<kD>(args, blockIdx.y, matrix);
  const int groups = blockDim.x / 32 / kWarps;
  const int end = per_head ? args.num_blocks : params.units;
  const int stride = gridDim.x * groups;
  const auto unit_at = [&](int i) {
    if (i >= end) return UnitAt(args, params.units, params.units);
    return UnitAt(args, per_head ? i * args.num_kv_heads + blockIdx.y : i, params.units);
  };

  int i = blockIdx.x * groups + warp / kWarps;
  Unit unit = unit_at(i);
  int stage = 0;
  StartCopy<kD>(args, unit, token_block, SharedAddress(stages));
  CommitCopies();
  for (; i < end; i += stride) {
    const Unit next = unit_at(i + stride);
    StartCopy<kD>(args, next, token_block, SharedAddress(stages + (stage ^ 1) * Tile<kD>::kBytes));
    CommitCopies();
    WaitCopies<1>();
    __syncwarp();
    uint8_t* at = stages + stage * Tile<kD>::kBytes;
    if (unit.rows > 0) {  // the same for the four warps
      Rows<kD> y;
      LoadRows<kD, kTransform>(fp16, SharedAddress(at), matrix, y);
      if (args.rotated != nullptr) StoreRows<kD>(args, unit, token_block, at, y);
      Codes<kD> codes;
      Quantise<kD, kTop, kSide>(y, params.kth, &codes);
      if (args.pages != nullptr && unit.rows == kPageTokens)
        StoreCodes<kD, kSide>(args, unit, token_block, codes);
      Report<kD>(args, unit, token_block, codes);
    }
    __syncwarp();  // the next copy overwrites this stage
    unit = next;
    stage ^= 1;
  }
  WaitCopies<0>();
}

template <bool kTransform>
constexpr int kThreads = kTransform ? 512 : 256;
template <bool kTransform>
constexpr int kBlocksPerSm = kTransform ? 1 : 2;

template <int kD, int kTop, Side kSide, bool kTransform>
__global__ void __launch_bounds__(kThreads<kTransform>, kBlocksPerSm<kTransform>)
    EncodeKernel(const __grid_constant__ EncodeParams params) {
  extern __shared__ __align__(1024) uint8_t shared[];
  EncodeLoop<kD, kTop, kSide, kTransform>(params, shared);
}

// One thread per element of the transposed matrices.
template <int kD>
__global__ void PrepareKernel(RowType type, const float* matrices, uint8_t* prepared) {
  const int k = blockIdx.x, n = threadIdx.x;
  const float v = matrices[(int64_t{blockIdx.y} * kD + k) * kD + n];
  uint8_t* high = prepared + blockIdx.y * PreparedTransformBytes(kD) + PreparedOffset<kD>(k, n);
  uint8_t* low = high + kD * kD * 2;
  if (type == RowType::kFp16) {
    const __half h = __float2half_rn(v);
    *reinterpret_cast<__half*>(high) = h;
    *reinterpret_cast<__half*>(low) = __float2half_rn(v - __half2float(h));
  } else {
    const __nv_bfloat16 h = __float2bfloat16_rn(v);
    *reinterpret_cast<__nv_bfloat16*>(high) = h;
    *reinterpret_cast<__nv_bfloat16*>(low) = __float2bfloat16_rn(v - __bfloat162float(h));
  }
}

struct DeviceLimits {
  int sms = 0, shared_per_block = 0, shared_per_sm = 0;
};

KernelStatus GetLimits(DeviceLimits* limits) {
  int device = 0;
  KernelStatus status = Check(cudaGetDevice(&device), "cudaGetDevice");
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (status == KernelStatus::kOk)
      status = Check(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
  };
  get(&limits->sms, cudaDevAttrMultiProcessorCount);
  get(&limits->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(&limits->shared_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return status;
}

template <int kD, int kTop, Side kSide, bool kTransform>
KernelStatus Launch(const EncodeParams& params, cudaStream_t stream) {
  DeviceLimits limits;
  KernelStatus status = GetLimits(&limits);
  if (status != KernelStatus::kOk) return status;
  constexpr int kMatrixBytes = kTransform ? static_cast<int>(PreparedTransformBytes(kD)) : 0;
  constexpr int kGroupBytes = kWarps * kStages * Tile<kD>::kBytes;
  const auto kernel = EncodeKernel<kD, kTop, kSide, kTransform>;
  // As many warpgroups as fit; one where shared memory is small (sm_86: 99 KB).
  const int room = (limits.shared_per_block - kMatrixBytes) / kGroupBytes;
  const int groups = min(kThreads<kTransform> / 128, room);
  if (groups < 1) return KernelStatus::kUnsupported;
  const int bytes = kMatrixBytes + groups * kGroupBytes;
  status = Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                 "cudaFuncSetAttribute");
  if (status != KernelStatus::kOk) return status;
  const EncodeBatchArgs& args = params.args;
  const bool per_head = kTransform && args.transform_head_stride != 0;
  const int blocks_per_sm = min(kBlocksPerSm<kTransform>, limits.shared_per_sm / bytes);
  const int resident = limits.sms * max(blocks_per_sm, 1);
  const int rows = per_head ? args.num_kv_heads : 1;
  const int units = per_head ? args.num_blocks : params.units;
  const dim3 grid(min((units + groups - 1) / groups, max(resident / rows, 1)), rows);
  kernel<<<grid, groups * 128, bytes, stream>>>(params);
  return Check(cudaGetLastError(), "EncodeKernel");
}

template <int kD, int kTop>
KernelStatus LaunchSide(const EncodeParams& params, cudaStream_t stream) {
  const bool key = params.args.side == Side::kKey;
  if (params.args.transform != nullptr) {
    return key ? Launch<kD, kTop, Side::kKey, true>(params, stream)
               : Launch<kD, kTop, Side::kValue, true>(params, stream);
  }
  return key ? Launch<kD, kTop, Side::kKey, false>(params, stream)
             : Launch<kD, kTop, Side::kValue, false>(params, stream);
}

}  // namespace

KernelStatus PrepareTransforms(int head_dim, RowType type, const float* matrices, int n,
                               void* prepared, Stream stream) {
  if (!IsSupportedHeadDim(head_dim)) return KernelStatus::kUnsupported;
  if (n <= 0) return KernelStatus::kOk;
  const dim3 grid(head_dim, n);
  const auto kernel = head_dim == 128 ? PrepareKernel<128> : PrepareKernel<64>;
  kernel<<<grid, head_dim, 0, static_cast<cudaStream_t>(stream.handle)>>>(
      type, matrices, static_cast<uint8_t*>(prepared));
  return Check(cudaGetLastError(), "PrepareKernel");
}

KernelStatus EncodeBlocks(const EncodeBatchArgs& args, Stream stream) {
  const int d = args.head_dim;
  if (!IsSupportedHeadDim(d)) return KernelStatus::kUnsupported;
  if (args.row_type == RowType::kFp16 && args.rotated == args.rows && args.rotated != nullptr)
    return KernelStatus::kUnsupported;
  if (args.num_blocks <= 0 || args.num_kv_heads <= 0) return KernelStatus::kOk;
  EncodeParams params;
  params.args = args;
  params.units = args.num_blocks * args.num_kv_heads;
  const bool clip = args.clip_ratio > 0 && args.clip_ratio < 1;
  params.kth = clip ? d - static_cast<int>(args.clip_ratio * static_cast<float>(d)) : 0;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  // Networks for the ratios of the profile (0.96, 0.92) and whatever else has these ranks.
  if (d == 128) {
    if (params.kth == 6) return LaunchSide<128, 6>(params, s);
    if (params.kth == 11) return LaunchSide<128, 11>(params, s);
    return LaunchSide<128, 0>(params, s);
  }
  if (params.kth == 3) return LaunchSide<64, 3>(params, s);
  if (params.kth == 6) return LaunchSide<64, 6>(params, s);
  return LaunchSide<64, 0>(params, s);
}

}  // namespace oscarkv::kernels::cuda
