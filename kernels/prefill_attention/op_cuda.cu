// A thread block computes one tile of 64 query tokens for one query head, or for two of a kv head:
// each of its four warps has 16 tokens of every head, so that a fragment of K or V serves all of
// the warp's heads. Blocks of K and V pass through two stages of shared memory; weights stay in
// registers (the accumulators of Q K^T are the left operands of P V).
#include "kernels/prefill_attention/op_cuda.h"

#include <cuda_runtime.h>

#include "kernels/cuda_device.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/elementwise/cuda_elements.cuh"

namespace oscarkv::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 2;
constexpr float kLog2e = 1.44269504088896340736f;

template <int kD>
struct Tile {  // 64 rows of K or V
  static constexpr int kRowBytes = 2 * kD;
  static constexpr int kBytes = kPageTokens * kRowBytes;
};

// Byte offset of a 16-byte chunk of a row; the XOR keeps ldmatrix free of bank conflicts.
template <int kD>
__device__ __forceinline__ uint32_t ChunkOffset(int row, int chunk) {
  return row * Tile<kD>::kRowBytes + 16 * (chunk ^ (row & 7));
}

template <int kD, int kHeads>
constexpr int SharedBytes() {
  return kHeads * Tile<kD>::kBytes + kStages * 2 * Tile<kD>::kBytes;
}

struct Position {
  int tile;     // position / 64 of its queries
  int kv_head;  // and the first of its query heads within the group
  int member;
};

// Queries of the tile as bf16: [head][64 tokens].
template <int kD, int kHeads>
__device__ void LoadQueries(const PagedPrefillArgs& args, const Position& at, uint8_t* shared) {
  constexpr int kChunks = kD / 8;
  const int heads = args.num_kv_heads * args.group;
  for (int i = threadIdx.x; i < kHeads * kPageTokens * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int query = at.tile * kPageTokens + row % kPageTokens - args.start;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (query >= 0 && query < args.num_queries) {
      const int head = at.kv_head * args.group + at.member + row / kPageTokens;
      const auto* q =
          reinterpret_cast<const float4*>(args.q + (int64_t{query} * heads + head) * kD) +
          2 * chunk;
      const float4 a = q[0], b = q[1];
      v = make_uint4(PackBf16(a.x, a.y), PackBf16(a.z, a.w), PackBf16(b.x, b.y),
                     PackBf16(b.z, b.w));
    }
    *reinterpret_cast<uint4*>(shared + ChunkOffset<kD>(row, chunk)) = v;
  }
}

// Starts the copies of a block's K and V of one kv head.
template <int kD>
__device__ void LoadBlock(const PagedPrefillArgs& args, const Position& at, int block,
                          uint32_t shared) {
  constexpr int kChunks = kD / 8;
  const bool history =
      args.history_ids != nullptr && block >= 1 && block < at.tile - args.window_blocks;
  const int id = history ? args.history_ids[block] : args.exact_ids[block];
  const uint8_t* k = id >= 0 ? args.pool + id * args.pool_stride
                             : args.scratch + int64_t{~id} * args.scratch_stride;
  k += int64_t{at.kv_head} * Tile<kD>::kBytes;
  const uint8_t* v = k + int64_t{args.num_kv_heads} * Tile<kD>::kBytes;
  // Rows behind the last query are filled with zeros: their weights are 0, and 0 * NaN is NaN.
  const int rows = args.start + args.num_queries - block * kPageTokens;
#pragma unroll
  for (int i = 0; i < kPageTokens * kChunks / kThreads; ++i) {
    const int row = (threadIdx.x + i * kThreads) / kChunks, chunk = threadIdx.x % kChunks;
    const int from = row * Tile<kD>::kRowBytes + 16 * chunk, bytes = row < rows ? 16 : 0;
    const uint32_t to = shared + ChunkOffset<kD>(row, chunk);
    CopyAsync16(to, k + (bytes > 0 ? from : 0), bytes);
    CopyAsync16(to + Tile<kD>::kBytes, v + (bytes > 0 ? from : 0), bytes);
  }
}

// What a warp has of its 16 tokens of one head: rows g and g + 8 of the fragments.
template <int kD>
struct Accumulators {
  float out[kD / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};  // of scores times `factor`
  float sum[2] = {};                          // this thread's share
};

// scores: [token tile of 8][4]. On the diagonal, keys behind the query drop out.
template <int kD>
__device__ void Softmax(float (&scores)[kPageTokens / 8][4], float factor, bool diagonal,
                        Accumulators<kD>* to) {
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const int first_row = threadIdx.x / 32 * 16 + g;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = to->maximum[half];
#pragma unroll
    for (int n = 0; n < kPageTokens / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& s = scores[n][2 * half + e];
        s = diagonal && 8 * n + 2 * j + e > first_row + 8 * half ? -INFINITY : s * factor;
        maximum = fmaxf(maximum, s);
      }
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
    const float shrink = Exp2(to->maximum[half] - maximum);
    to->maximum[half] = maximum;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kPageTokens / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& s = scores[n][2 * half + e];
        s = Exp2(s - maximum);
        sum += s;
      }
    }
    to->sum[half] = to->sum[half] * shrink + sum;
#pragma unroll
    for (int c = 0; c < kD / 8; ++c) {
      to->out[c][2 * half] *= shrink;
      to->out[c][2 * half + 1] *= shrink;
    }
  }
}

template <int kD, int kHeads>
__device__ void AttendBlock(uint32_t queries, uint32_t keys, float factor, bool diagonal,
                            Accumulators<kD> (&acc)[kHeads]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float scores[kHeads][kPageTokens / 8][4] = {};
#pragma unroll
  for (int ks = 0; ks < kD / 16; ++ks) {
    uint32_t q[kHeads][4];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      LoadMatrices(q[h], queries + ChunkOffset<kD>(h * kPageTokens + 16 * warp + lane % 16,
                                                   2 * ks + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < kPageTokens / 16; ++n) {
      uint32_t k[4];
      LoadMatrices(
          k, keys + ChunkOffset<kD>(16 * n + lane / 16 * 8 + lane % 8, 2 * ks + lane / 8 % 2));
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        MmaBf16(scores[h][2 * n], q[h], k[0], k[1]);
        MmaBf16(scores[h][2 * n + 1], q[h], k[2], k[3]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) Softmax<kD>(scores[h], factor, diagonal, &acc[h]);
  const uint32_t values = keys + Tile<kD>::kBytes;
#pragma unroll
  for (int kt = 0; kt < kPageTokens / 16; ++kt) {
    uint32_t p[kHeads][4];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const auto& s = scores[h];
      p[h][0] = PackBf16(s[2 * kt][0], s[2 * kt][1]);
      p[h][1] = PackBf16(s[2 * kt][2], s[2 * kt][3]);
      p[h][2] = PackBf16(s[2 * kt + 1][0], s[2 * kt + 1][1]);
      p[h][3] = PackBf16(s[2 * kt + 1][2], s[2 * kt + 1][3]);
    }
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
      uint32_t v[4];
      LoadMatricesTransposed(
          v, values + ChunkOffset<kD>(16 * kt + lane / 8 % 2 * 8 + lane % 8, 2 * c + lane / 16));
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        MmaBf16(acc[h].out[2 * c], p[h], v[0], v[1]);
        MmaBf16(acc[h].out[2 * c + 1], p[h], v[2], v[3]);
      }
    }
  }
}

template <int kD>
__device__ void StoreHead(const PagedPrefillArgs& args, const Position& at, int head,
                          const Accumulators<kD>& acc) {
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const int64_t heads = int64_t{args.num_kv_heads} * args.group;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = acc.sum[half];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int query = at.tile * kPageTokens + threadIdx.x / 32 * 16 + g + 8 * half - args.start;
    if (query < 0 || query >= args.num_queries) continue;
    const int64_t row = (query * heads + at.kv_head * args.group + at.member + head) * kD + 2 * j;
    const float factor = 1 / sum;
#pragma unroll
    for (int c = 0; c < kD / 8; ++c) {
      const float a = acc.out[c][2 * half] * factor, b = acc.out[c][2 * half + 1] * factor;
      if (args.out.type == ElementType::kFloat32) {
        *reinterpret_cast<float2*>(static_cast<float*>(args.out.data) + row + 8 * c) =
            make_float2(a, b);
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(args.out.data) + row + 8 * c) =
            PackBf16(a, b);
      }
    }
  }
}

template <int kD, int kHeads>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillAttentionKernel(const __grid_constant__ PagedPrefillArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int members = args.group / kHeads;
  // The longest tiles first.
  const Position at{args.start / kPageTokens + static_cast<int>(gridDim.y - 1 - blockIdx.y),
                    static_cast<int>(blockIdx.x) / members,
                    static_cast<int>(blockIdx.x) % members * kHeads};
  const uint32_t queries = SharedAddress(shared);
  const uint32_t stages = queries + kHeads * Tile<kD>::kBytes;
  LoadBlock<kD>(args, at, 0, stages);
  CopyAsyncCommit();
  LoadQueries<kD, kHeads>(args, at, shared);
  Accumulators<kD> acc[kHeads];
  const float factor = args.scale * kLog2e;
  for (int block = 0; block <= at.tile; ++block) {
    if (block < at.tile) {
      LoadBlock<kD>(args, at, block + 1, stages + (block + 1) % kStages * 2 * Tile<kD>::kBytes);
    }
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    __syncthreads();
    AttendBlock<kD, kHeads>(queries, stages + block % kStages * 2 * Tile<kD>::kBytes, factor,
                            block == at.tile, acc);
    __syncthreads();  // the stage is free
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) StoreHead<kD>(args, at, h, acc[h]);
}

template <int kD, int kHeads>
KernelStatus Launch(const PagedPrefillArgs& args, cudaStream_t stream) {
  const auto kernel = PrefillAttentionKernel<kD, kHeads>;
  constexpr int kShared = SharedBytes<kD, kHeads>();
  const KernelStatus status =
      Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
            "shared memory of the prefill attention kernel");
  if (status != KernelStatus::kOk) return status;
  const int tiles =
      (args.start + args.num_queries - 1) / kPageTokens - args.start / kPageTokens + 1;
  kernel<<<dim3(args.num_kv_heads * (args.group / kHeads), tiles), kThreads, kShared, stream>>>(
      args);
  return Check(cudaGetLastError(), "PrefillAttentionKernel");
}

template <int kD>
KernelStatus LaunchHeads(const PagedPrefillArgs& args, cudaStream_t stream) {
  return args.group % 2 == 0 ? Launch<kD, 2>(args, stream) : Launch<kD, 1>(args, stream);
}

// One thread block per (page, kv head, side).
template <int kD>
__global__ void DecodePagesKernel(const __grid_constant__ DecodePagesArgs args) {
  __shared__ uint32_t codes[CodesBytes(kD) / 4];
  __shared__ __half planes[2][kPageTokens];  // scale, offset
  const int head = blockIdx.y, side = blockIdx.z;
  const uint8_t* page_head = args.pages + args.page_ids[blockIdx.x] * args.page_stride +
                             int64_t{head} * PageHeadBytes(kD, args.offsets);
  const auto* words = reinterpret_cast<const uint32_t*>(page_head + side * CodesBytes(kD));
  for (int i = threadIdx.x; i < static_cast<int>(CodesBytes(kD) / 4); i += kThreads)
    codes[i] = words[i];
  const auto* meta = reinterpret_cast<const __half*>(
      page_head + ScaleOffset(kD, side == 0 ? Side::kKey : Side::kValue, args.offsets));
  for (int i = threadIdx.x; i < (args.offsets ? 2 : 1) * kPageTokens; i += kThreads)
    planes[i / kPageTokens][i % kPageTokens] = meta[i];
  __syncthreads();
  uint8_t* block = args.blocks + blockIdx.x * args.block_stride +
                   (int64_t{side} * args.num_kv_heads + head) * Tile<kD>::kBytes;
  for (int i = threadIdx.x; i < kPageTokens * kD / 8; i += kThreads) {
    const int token = i / (kD / 8), first = i % (kD / 8) * 8;
    const float scale = __half2float(planes[0][MetaIndex(token)]),
                offset = args.offsets ? __half2float(planes[1][MetaIndex(token)])
                                      : kCentredOffset * scale;
    float v[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const CodePosition at =
          side == 0 ? KeyPosition(kD, token, first + c) : ValuePosition(kD, token, first + c);
      v[c] = fmaf(static_cast<float>(codes[at.word] >> at.bit & 3), scale, offset);
    }
    *reinterpret_cast<uint4*>(block + token * Tile<kD>::kRowBytes + 2 * first) = make_uint4(
        PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]), PackBf16(v[6], v[7]));
  }
}

}  // namespace

KernelStatus PagedPrefillAttention(const PagedPrefillArgs& args, Stream stream) {
  if (!IsSupportedHeadDim(args.head_dim) || args.group < 1 || args.group > kMaxGroup ||
      args.num_kv_heads < 1)
    return KernelStatus::kUnsupported;
  if (args.num_queries <= 0) return KernelStatus::kOk;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  return args.head_dim == 128 ? LaunchHeads<128>(args, s) : LaunchHeads<64>(args, s);
}

KernelStatus DecodePages(const DecodePagesArgs& args, Stream stream) {
  if (!IsSupportedHeadDim(args.head_dim) || args.num_kv_heads < 1)
    return KernelStatus::kUnsupported;
  if (args.num_pages <= 0) return KernelStatus::kOk;
  const dim3 grid(args.num_pages, args.num_kv_heads, 2);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  if (args.head_dim == 128) {
    DecodePagesKernel<128><<<grid, kThreads, 0, s>>>(args);
  } else {
    DecodePagesKernel<64><<<grid, kThreads, 0, s>>>(args);
  }
  return Check(cudaGetLastError(), "DecodePagesKernel");
}

}  // namespace oscarkv::kernels::cuda
