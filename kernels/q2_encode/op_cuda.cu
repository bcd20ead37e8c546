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
// meet. The grid is persistent, so that a thread block loads its transform once; with one transform
// per head, heads are the grid's second dimension.
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
constexpr int kThreads = 512;  // of a thread block at most: one on each SM, with 128 registers each

// n / divisor for 0 <= n < 2^31 by a multiplication.
struct Divider {
  uint32_t factor = 0, shift = 0;

  explicit Divider(uint32_t divisor) {
    while ((1u << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ int Divide(int n) const {
    return static_cast<int>((__umulhi(factor, n) + static_cast<uint32_t>(n)) >> shift);
  }
};

struct EncodeParams {
  EncodeBatchArgs args;
  Divider heads;
  int kth;    // the clip threshold is the kth largest magnitude; 0: no clip
  int units;  // of all thread blocks with one blockIdx.y
  int run;    // without a transform: token blocks of a unit, 1 or 4
  // 4^p. Known to the compiler, they would be shifts, which the busiest pipe would have to do.
  uint32_t powers[4];
};

// Where a warp's rows, or a warpgroup's, stand.
struct Unit {
  int index = 0;
  int block = 0, head = 0, token_block = 0;
  int rows = 0;     // of the block that exist; 0: leave out
  int64_t row = 0;  // element of the block's first row
};

template <int kD>
struct Tile {
  static constexpr int kPitch =
      2 * kD + 16;  // bytes; the padding keeps ldmatrix off bank conflicts
  static constexpr int kBytes = kBlockRows * kPitch;
  static constexpr int kChunks = kD / 8;             // 16-byte chunks of a row
  static constexpr int kRowsPerCopy = 32 / kChunks;  // that one instruction of a warp copies
  static constexpr int kCopies = kBlockRows / kRowsPerCopy;
};

// What stands between the rows as given and y.
enum class RowMode {
  kPlain,      // nothing: bf16, no transform
  kConverted,  // fp16 rounded to bf16; off the profile's path, so only with KthLargestByBits
  kTransformed
};

template <int kD, RowMode kMode>
constexpr int kMatrixBytes = kMode == RowMode::kTransformed
                                 ? static_cast<int>(PreparedTransformBytes(kD))
                                 : 0;

// Starts copying the warp's rows; rows that do not exist become zeros.
template <int kD>
__device__ __forceinline__ void StartCopy(const EncodeBatchArgs& args, const Unit& unit,
                                          uint32_t stage) {
  using T = Tile<kD>;
  const int lane = threadIdx.x % 32;
  const int first = lane / T::kChunks, chunk = lane % T::kChunks;
  const int row = kBlockRows * unit.token_block + first;
  const uint16_t* from =
      static_cast<const uint16_t*>(args.rows) + unit.row + row * args.row_stride + 8 * chunk;
  const int64_t step = T::kRowsPerCopy * args.row_stride;
  const uint32_t to = stage + first * T::kPitch + 16 * chunk;
  if (unit.rows == kPageTokens) {
#pragma unroll
    for (int i = 0; i < T::kCopies; ++i, from += step)
      CopyAsync16(to + i * T::kRowsPerCopy * T::kPitch, from, 16);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < T::kCopies; ++i, from += step) {
    const bool valid = row + i * T::kRowsPerCopy < unit.rows;
    CopyAsync16(to + i * T::kRowsPerCopy * T::kPitch, valid ? from : args.rows, valid ? 16 : 0);
  }
}

// The rows of a stage as fragments of 16 channels.
template <int kD>
__device__ __forceinline__ void LoadFragments(uint32_t stage, uint32_t (&x)[kD / 16][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = stage + (lane % 16) * Tile<kD>::kPitch + (lane / 16) * 16;
#pragma unroll
  for (int ks = 0; ks < kD / 16; ++ks) LoadMatrices(x[ks], at + 32 * ks);
}

// y as pairs of bf16: y[r][nt] holds channels 8 nt + 2 j + e of row g + 8 r.
template <int kD>
using Rows = uint32_t[2][kD / 8];

template <int kD, RowMode kMode>
__device__ __forceinline__ void LoadRows(bool fp16, uint32_t stage, uint32_t matrix, uint32_t lock,
                                         Rows<kD>& y) {
  uint32_t x[kD / 16][4];
  LoadFragments<kD>(stage, x);
  if constexpr (kMode == RowMode::kTransformed) {
    float c[kD / 2];
    if (fp16) {
      Transform<kD, true>(x, matrix, lock, c);
    } else {
      Transform<kD, false>(x, matrix, lock, c);
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
      for (int i = 0; i < 4; ++i) {
        y[i % 2][2 * ks + i / 2] = kMode == RowMode::kConverted ? Fp16ToBf16(x[ks][i]) : x[ks][i];
      }
    }
  }
}

// The rows to `rotated`, by way of the stage so that whole rows are written.
template <int kD>
__device__ __forceinline__ void StoreRows(const EncodeBatchArgs& args, const Unit& unit,
                                          uint8_t* stage, const Rows<kD>& y) {
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
    const int token = kBlockRows * unit.token_block + row;
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
    h = MaxBf16(h, __shfl_xor_sync(kAllLanes, h, lane_mask));
    l = MinBf16(l, __shfl_xor_sync(kAllLanes, l, lane_mask));
  }
  *largest = h;
  *smallest = l;
}

template <int kD, int kTop, Side kSide>
__device__ __forceinline__ void Quantise(const Rows<kD>& y, int kth, const uint32_t (&powers)[4],
                                         Codes<kD>* codes) {
  const int lane = threadIdx.x % 32, j = lane % 4;
  uint32_t top, clips, largest, smallest;
  if constexpr (kTop > 8) {
    // With 7 of each list of 16 kept, fewer than one in 3000 random rows wants more.
    bool exact;
    clips = KthLargest<kTop, 7>(y, &top, &exact);
    if (__any_sync(kAllLanes, !exact)) clips = KthLargest<kTop, kTop>(y, &top, &exact);
  } else if constexpr (kTop > 0) {
    bool exact;
    clips = KthLargest<kTop, kTop>(y, &top, &exact);
  } else {
    clips = KthLargestByBits(y, kth, &top);
    if (kth == 0) clips = 0x7f807f80u;
  }
  RowRanges<kD>(y, &largest, &smallest);
  // The clip is at least the smallest |y|, so that each end needs it on its own side only. A NaN
  // among the clips (of rows that are reported) loses.
  const float2 hi = UnpackBf16(MinBf16(largest, clips));
  const float2 lo = UnpackBf16(MaxBf16(smallest, clips ^ 0x80008000u));

  // Rows g and g + 8: lane j < 3 finds threshold j + 1 of both; all lanes need all.
  const float level = static_cast<float>(min(j, 2)) + 0.5f;
  uint32_t own[2];
  RowScale rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float low = (r == 0 ? lo.x : lo.y) + 0.0f;  // -0 becomes +0
    const float high = r == 0 ? hi.x : hi.y;
    rows[r] = ScaleOf(low, high);
    codes->clamped[r] = rows[r].clamped;
    codes->nonfinite[r] = (r == 0 ? top & 0xffff : top >> 16) >= 0x7f80;
    own[r] = __float_as_uint(0 - CodeThreshold(level, rows[r], low, high));  // never -0
  }
  codes->scales = PackFp16(rows[0].scale, rows[1].scale);
  codes->offsets = PackFp16(rows[0].offset, rows[1].offset);
  const uint32_t both = HighHalves(own[0], own[1]);
  uint32_t t[2][3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint32_t threshold = __shfl_sync(kAllLanes, both, (lane & ~3) | i);
    t[0][i] = LowHalves(threshold, threshold);
    t[1][i] = HighHalves(threshold, threshold);
  }

  // A code is 3 less the number of its thresholds above y, and y - T is negative where T is above.
  // Code 4 b + p of a word stands at bits 8 b + 2 p, b being the channel's u for K and the row's r
  // for V: a byte permutation that spreads signs over bytes gives, from two registers, 255 times
  // the number of negative differences for four codes. Sums of these stay below 256 a byte once
  // divided by 255, whose inverse modulo 2^32 is -0x01010101; and 3 - n of two bits is ~n.
#pragma unroll
  for (int ch = 0; ch < kD / 64; ++ch) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      uint32_t above = 0;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          uint32_t difference[2];
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const int r = kSide == Side::kKey ? word : b, u = kSide == Side::kKey ? b : word;
            difference[b] = AddBf16(y[r][8 * ch + 2 * p + u], t[r][i]);
          }
          above += SignBytes(difference[0], difference[1]) * powers[p];
        }
      }
      const uint32_t w = above * 0x01010101u - 1;
      codes->words[ch][word] = kSide == Side::kKey ? w : Transpose8x8(w);
    }
  }
}

template <int kD, Side kSide>
__device__ __forceinline__ void StoreCodes(const EncodeBatchArgs& args, const Unit& unit,
                                           const Codes<kD>& codes) {
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  constexpr int kSlotBytes = kD / 8;
  constexpr int kSideIndex = static_cast<int>(kSide);
  uint8_t* page =
      args.pages +
      (args.page_begin != nullptr ? args.page_begin[unit.block] : unit.block * args.page_stride) +
      unit.head * static_cast<int64_t>(PageHeadBytes(kD));
  uint8_t* slot = page + kSideIndex * CodesBytes(kD) + unit.token_block * (32 * kSlotBytes) +
                  Slot(g, j) * kSlotBytes;
  if constexpr (kD == 128) {
    *reinterpret_cast<uint4*>(slot) =
        make_uint4(codes.words[0][0], codes.words[0][1], codes.words[1][0], codes.words[1][1]);
  } else {
    *reinterpret_cast<uint2*>(slot) = make_uint2(codes.words[0][0], codes.words[0][1]);
  }
  if (j < 2) {  // MetaIndex of rows g and g + 8 are neighbours
    uint8_t* plane = page + MetaOffset(kD) + (2 * kSideIndex + j) * 2 * kPageTokens;
    *reinterpret_cast<uint32_t*>(plane + 2 * MetaIndex(kBlockRows * unit.token_block + g)) =
        j == 0 ? codes.scales : codes.offsets;
  }
}

// Seldom anything to do: counts rows, each by the first of its four lanes.
template <int kD>
__device__ __forceinline__ void Report(const EncodeBatchArgs& args, const Unit& unit,
                                       const Codes<kD>& codes) {
  const int lane = threadIdx.x % 32;
  if (!__any_sync(kAllLanes, codes.nonfinite[0] || codes.nonfinite[1] || codes.clamped[0] ||
                                 codes.clamped[1])) {
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane % 4 != 0 || kBlockRows * unit.token_block + lane / 4 + 8 * r >= unit.rows) continue;
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
    CopyAsync16(matrix + 16 * i, from + 16 * i, 16);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  // wgmma reads shared memory through another path than ordinary loads.
#if OSCARKV_SM90
  FenceAsyncCopies();
#endif
  __syncthreads();
}

// The units of a thread block, handed out as its warps (with a transform: its warpgroups) ask for
// them: the scheduler prefers some warps, and with equal shares those would end early.
//
// A unit is `run` token blocks of a page-head for a warp; with a transform, all 64 rows for a
// warpgroup. Units are all of the launch's, block by block and head by head; or, with one transform
// per head, those of head blockIdx.y.
template <bool kTransform>
class Units {
 public:
  // `counter` and `slots`: shared memory. A barrier must follow before Next.
  __device__ Units(const EncodeParams& params, int* counter, int (*slots)[2])
      : params_(params), counter_(SharedAddress(counter)), slots_(slots[threadIdx.x / 128]) {
    const int64_t units = params.units;
    const int begin = static_cast<int>(units * blockIdx.x / gridDim.x);
    end_ = static_cast<int>(units * (blockIdx.x + 1) / gridDim.x);
    first_ = begin + threadIdx.x / kThreadsPerUnit;
    if (threadIdx.x == 0) *counter = begin + blockDim.x / kThreadsPerUnit;
  }
  __device__ int end() const { return end_; }
  __device__ Unit First() const { return At(first_); }

  // What the warp does after `unit`; the index is end() or more when there is nothing.
  __device__ Unit Next(const Unit& unit) {
    int index = 0;
    if constexpr (kTransform) {
      // A slower warp may still be reading the slot of the last call.
      parity_ ^= 1;
      if (threadIdx.x % 128 == 0) slots_[parity_] = Fetch();
      asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
      index = slots_[parity_];
    } else {
      if ((unit.token_block + 1) % params_.run != 0) {
        Unit next = unit;
        ++next.token_block;
        return next;
      }
      if (threadIdx.x % 32 == 0) index = Fetch();
      index = __shfl_sync(kAllLanes, index, 0);
    }
    return At(index);
  }

 private:
  static constexpr int kThreadsPerUnit = kTransform ? 128 : 32;

  __device__ int Fetch() const {
    int index;  // atomicAdd would look for other lanes that do the same
    asm volatile("atom.relaxed.cta.shared::cta.add.s32 %0, [%1], 1;"
                 : "=r"(index)
                 : "r"(counter_)
                 : "memory");
    return index;
  }

  __device__ Unit At(int index) const {
    const EncodeBatchArgs& args = params_.args;
    Unit unit = {.index = index};
    if (index >= end_) return unit;
    int page_head = index;
    if constexpr (kTransform) {
      unit.token_block = threadIdx.x / 32 % kWarps;
    } else if (params_.run < kWarps) {
      page_head = index / kWarps;
      unit.token_block = index % kWarps;
    }
    if (kTransform && gridDim.y > 1) {
      unit.block = page_head;
      unit.head = blockIdx.y;
    } else {
      unit.block = params_.heads.Divide(page_head);
      unit.head = page_head - unit.block * args.num_kv_heads;
    }
    unit.rows = kPageTokens;
    if (args.row_begin != nullptr) {
      unit.row = args.row_begin[unit.block];
      if (unit.row < 0) unit.rows = 0;
    } else {
      unit.row = unit.block * (kPageTokens * args.row_stride);
      unit.rows = static_cast<int>(
          min(int64_t{kPageTokens}, args.num_tokens - int64_t{kPageTokens} * unit.block));
    }
    unit.row += unit.head * args.head_stride;
    return unit;
  }

  const EncodeParams& params_;
  uint32_t counter_;
  int* slots_;
  int first_, end_, parity_ = 0;
};

template <int kD, int kTop, Side kSide, RowMode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    EncodeKernel(const __grid_constant__ EncodeParams params) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ int counter, slots[kThreads / 128][2];
  __shared__ uint32_t lock;
  constexpr bool kTransform = kMode == RowMode::kTransformed;
  const EncodeBatchArgs& args = params.args;
  const uint32_t matrix = SharedAddress(shared);
  uint8_t* stages =
      shared + kMatrixBytes<kD, kMode> + threadIdx.x / 32 * kStages * Tile<kD>::kBytes;
  const bool fp16 = args.row_type == RowType::kFp16;
  Units<kTransform> units(params, &counter, slots);
  if (threadIdx.x == 0) lock = 0;
  Unit unit = units.First();
  int stage = 0;
  if (unit.rows > 0) StartCopy<kD>(args, unit, SharedAddress(stages));
  CopyAsyncCommit();
  if constexpr (kTransform) LoadTransform<kD>(args, blockIdx.y, matrix);
  __syncthreads();
  while (unit.index < units.end()) {
    const Unit next = units.Next(unit);
    if (next.rows > 0)
      StartCopy<kD>(args, next, SharedAddress(stages + (stage ^ 1) * Tile<kD>::kBytes));
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    __syncwarp();
    uint8_t* at = stages + stage * Tile<kD>::kBytes;
    if (unit.rows > 0) {  // the same for the warps of a warpgroup
      Rows<kD> y;
      LoadRows<kD, kMode>(fp16, SharedAddress(at), matrix, SharedAddress(&lock), y);
      if (args.rotated != nullptr) StoreRows<kD>(args, unit, at, y);
      Codes<kD> codes;
      Quantise<kD, kTop, kSide>(y, params.kth, params.powers, &codes);
      if (args.pages != nullptr && unit.rows == kPageTokens)
        StoreCodes<kD, kSide>(args, unit, codes);
      Report<kD>(args, unit, codes);
    }
    __syncwarp();  // the next copy overwrites this stage
    unit = next;
    stage ^= 1;
  }
  CopyAsyncWait<0>();
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
  int sms = 0, shared_per_block = 0;
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
  return status;
}

template <int kD, int kTop, Side kSide, RowMode kMode>
KernelStatus Launch(EncodeParams params, cudaStream_t stream) {
  constexpr bool kTransform = kMode == RowMode::kTransformed;
  DeviceLimits limits;
  KernelStatus status = GetLimits(&limits);
  if (status != KernelStatus::kOk) return status;
  constexpr int kGroupBytes = kWarps * kStages * Tile<kD>::kBytes;
  constexpr int kStaticBytes = 1024;  // less, rounded up to the alignment of the dynamic part
  const auto kernel = EncodeKernel<kD, kTop, kSide, kMode>;
  // As many warpgroups as fit; one where shared memory is small (sm_86: 99 KB).
  const int room = (limits.shared_per_block - kMatrixBytes<kD, kMode> - kStaticBytes) / kGroupBytes;
  const int groups = min(kThreads / 128, room);
  if (groups < 1) return KernelStatus::kUnsupported;
  const int bytes = kMatrixBytes<kD, kMode> + groups * kGroupBytes;
  status = Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                 "cudaFuncSetAttribute");
  if (status != KernelStatus::kOk) return status;
  const EncodeBatchArgs& args = params.args;
  const bool per_head = kTransform && args.transform_head_stride != 0;
  const int rows = per_head ? args.num_kv_heads : 1;
  const int page_heads = per_head ? args.num_blocks : args.num_blocks * args.num_kv_heads;
  // Few page-heads: spread over many SMs, and a warp for every token block.
  const dim3 grid(min(page_heads, max(limits.sms / rows, 1)), rows);
  const int busy = static_cast<int>((page_heads + grid.x - 1) / grid.x);
  params.run = !kTransform && busy >= 16 * groups ? kWarps : 1;
  params.units = kTransform || params.run == kWarps ? page_heads : kWarps * page_heads;
  kernel<<<grid, 128 * min(groups, busy), bytes, stream>>>(params);
  return Check(cudaGetLastError(), "EncodeKernel");
}

template <int kD, int kTop, Side kSide>
KernelStatus LaunchMode(const EncodeParams& params, cudaStream_t stream) {
  if (params.args.transform != nullptr)
    return Launch<kD, kTop, kSide, RowMode::kTransformed>(params, stream);
  if (params.args.row_type == RowType::kFp16)
    return Launch<kD, 0, kSide, RowMode::kConverted>(params, stream);
  return Launch<kD, kTop, kSide, RowMode::kPlain>(params, stream);
}

template <int kD, int kTop>
KernelStatus LaunchSide(const EncodeParams& params, cudaStream_t stream) {
  return params.args.side == Side::kKey ? LaunchMode<kD, kTop, Side::kKey>(params, stream)
                                        : LaunchMode<kD, kTop, Side::kValue>(params, stream);
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
  if (int64_t{args.num_blocks} * args.num_kv_heads > (1 << 28)) return KernelStatus::kUnsupported;
  const bool clip = args.clip_ratio > 0 && args.clip_ratio < 1;
  const int kth = clip ? d - static_cast<int>(args.clip_ratio * static_cast<float>(d)) : 0;
  const EncodeParams params{args, Divider(args.num_kv_heads), kth, 0, 0, {1, 4, 16, 64}};
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
