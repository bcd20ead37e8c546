// A thread block prepares 16 rows of one kv head - rows are (token, head), the group's query heads
// and the key head of each token - for 32 channels of the result: a decode step of one sequence
// then still spreads over kv heads x 4 blocks, each of which waits once for its quarter of the
// matrix. The norm and RoPE of the rows are done by every block that needs them.
#include "kernels/attention_inputs/op_cuda.h"

#include <cuda_runtime.h>

#include "kernels/cuda_device.h"
#include "kernels/cuda_launch.cuh"
#include "kernels/cuda_primitives.cuh"
#include "kernels/elementwise/cuda_elements.cuh"
#include "kernels/q2_encode/transform.cuh"

namespace oscarkv::kernels::cuda {
namespace {

constexpr int kRows = 16;
constexpr int kWarps = 4;
constexpr int kColumns = 8 * kWarps;  // of a thread block: an 8-wide tile for each warp

// A row of kv head blockIdx.y.
struct Row {
  bool exists;
  int token, member;  // member of the group; `group` itself: the key
};

// Thread blocks of queries alone, when these have a transform of their own; keys' come behind.
__host__ __device__ int QueryBlocks(const AttentionInputArgs& args) {
  return args.query_transform == nullptr ? 0 : (args.num_tokens * args.group + kRows - 1) / kRows;
}

// Row `index` of thread block blockIdx.x.
__device__ Row RowAt(const AttentionInputArgs& args, int index) {
  const int block = static_cast<int>(blockIdx.x), query_blocks = QueryBlocks(args);
  Row row;
  if (query_blocks == 0) {
    index += block * kRows;
    row.token = index / (args.group + 1);
    row.member = index - row.token * (args.group + 1);
  } else if (block < query_blocks) {
    index += block * kRows;
    row.token = index / args.group;
    row.member = index - row.token * args.group;
  } else {
    row.token = index + (block - query_blocks) * kRows;
    row.member = args.group;
  }
  row.exists = row.token < args.num_tokens;
  return row;
}

// Channel `channel` of a token's row of qkv.
template <class In>
__device__ float LoadInput(const AttentionInputArgs& args, int token, int channel) {
  const int64_t at = token * args.row_stride + channel;
  float v = LoadElement(static_cast<const In*>(args.qkv.data) + at);
  if (args.qkv_rest != nullptr) v += LoadElement(static_cast<const In*>(args.qkv_rest) + at);
  if (args.bias != nullptr) v += args.bias[channel];
  return v;
}

// The warp's copy of a row after norm and RoPE: channel lane + 32 i in v[i]. `scratch`: kD floats
// of the warp's own.
template <int kD, class In>
__device__ void LoadRow(const AttentionInputArgs& args, const Row& row, float* scratch,
                        float (&v)[kD / 32]) {
  const int lane = threadIdx.x % 32, kv_head = blockIdx.y;
  const bool key = row.member == args.group;
  const int head =
      key ? args.num_kv_heads * args.group + kv_head : kv_head * args.group + row.member;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kD / 32; ++i) {
    v[i] = LoadInput<In>(args, row.token, head * kD + lane + 32 * i);
    sum += v[i] * v[i];
  }
  const float* weight = key ? args.k_norm : args.q_norm;
  if (weight != nullptr) {
    for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, lane_mask);
    const float factor = 1 / sqrtf(sum / kD + args.eps);
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) v[i] *= factor * weight[lane + 32 * i];
  }
  if (const int half = args.half_dim; half > 0) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) scratch[lane + 32 * i] = v[i];
    __syncwarp();
    const int64_t at = int64_t{args.positions[row.token]} * half;
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const int c = lane + 32 * i;
      if (c >= 2 * half) continue;
      const int pair = c < half ? c : c - half;
      const float cos = args.cos_table[at + pair], sin = args.sin_table[at + pair];
      v[i] = c < half ? v[i] * cos - scratch[c + half] * sin : v[i] * cos + scratch[c - half] * sin;
    }
  }
  if (key && args.key_mean != nullptr) {
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) v[i] -= args.key_mean[kv_head * kD + lane + 32 * i];
  }
}

// Where the row's K stands, or null.
template <int kD>
__device__ Bf16* KeyRow(const AttentionInputArgs& args, const Row& row) {
  if (args.kv == nullptr || args.kv_row[row.token] < 0) return nullptr;
  return args.kv + args.kv_row[row.token] + int64_t{blockIdx.y} * kPageTokens * kD;
}

template <int kD, class In>
__device__ void StoreValueRow(const AttentionInputArgs& args, const Row& row) {
  Bf16* to = KeyRow<kD>(args, row);
  if (to == nullptr) return;
  const int head = args.num_kv_heads * (args.group + 1) + blockIdx.y;
  for (int c = threadIdx.x % 32; c < kD; c += 32)
    StoreElement(to + args.value_offset + c, LoadInput<In>(args, row.token, head * kD + c));
}

template <int kD>
__device__ float* QueryRow(const AttentionInputArgs& args, const Row& row) {
  const int64_t heads = int64_t{args.num_kv_heads} * args.group;
  return args.q + (row.token * heads + blockIdx.y * args.group + row.member) * kD;
}

// Two neighbouring channels of a finished row.
template <int kD>
__device__ void StorePair(const AttentionInputArgs& args, const Row& row, int channel, float a,
                          float b) {
  if (!row.exists) return;
  if (row.member < args.group) {
    *reinterpret_cast<float2*>(QueryRow<kD>(args, row) + channel) = make_float2(a, b);
  } else if (Bf16* to = KeyRow<kD>(args, row); to != nullptr) {
    *reinterpret_cast<uint32_t*>(to + channel) = PackBf16(a, b);
  }
}

// The warp's 16x8 tile of the product: rows in `high` and `low` (bf16 terms, rows of `pitch`
// bytes).
template <int kD>
__device__ void Rotate(const uint32_t (&b)[2][kD / 16][2], uint32_t high, uint32_t low, int pitch,
                       float (&c)[4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = (lane % 16) * pitch + (lane / 16) * 16;
  float small[4] = {};
  for (float& v : c) v = 0;
#pragma unroll
  for (int ks = 0; ks < kD / 16; ++ks) {
    uint32_t a_high[4], a_low[4];
    LoadMatrices(a_high, high + at + 32 * ks);
    LoadMatrices(a_low, low + at + 32 * ks);
    MmaBf16(c, a_high, b[0][ks][0], b[0][ks][1]);
    MmaBf16(small, a_low, b[0][ks][0], b[0][ks][1]);
    MmaBf16(small, a_high, b[1][ks][0], b[1][ks][1]);
  }
  for (int i = 0; i < 4; ++i) c[i] += small[i];
}

template <int kD, class In, bool kRotate>
__global__ void __launch_bounds__(32 * kWarps)
    AttentionInputKernel(const __grid_constant__ AttentionInputArgs args) {
  constexpr int kPitch = 2 * kD + 16;
  __shared__ __align__(16) uint8_t terms[2][kRotate ? kRows * kPitch : 16];
  __shared__ float scratch[kWarps][kD];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const int column = blockIdx.z * kColumns + 8 * warp;  // first of the warp's

  LetNextKernelStart();
  // The matrix first: the kernel before and the rows' norms pass the time until it comes.
  // b[term][ks]: an MMA fragment.
  uint32_t b[2][kD / 16][2];
  if constexpr (kRotate) {
    const uint8_t* matrix =
        static_cast<const uint8_t*>(static_cast<int>(blockIdx.x) < QueryBlocks(args)
                                        ? args.query_transform
                                        : args.transform) +
        blockIdx.y * args.transform_head_stride;
#pragma unroll
    for (int term = 0; term < 2; ++term) {
#pragma unroll
      for (int i = 0; i < kD / 8; ++i) {
        b[term][i / 2][i % 2] = __ldg(reinterpret_cast<const uint32_t*>(
            matrix + term * 2 * kD * kD + PreparedOffset<kD>(8 * i + 2 * j, column + g)));
      }
    }
  }

  WaitForPriorKernels();
  for (int r = warp; r < kRows; r += kWarps) {
    const Row row = RowAt(args, r);
    float v[kD / 32] = {};
    if (row.exists) {
      LoadRow<kD, In>(args, row, scratch[warp], v);
      if (blockIdx.z == 0 && row.member == args.group) StoreValueRow<kD, In>(args, row);
    }
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const int c = lane + 32 * i;
      if constexpr (kRotate) {
        const uint32_t high = PackBf16(v[i], 0);
        Bf16* to = reinterpret_cast<Bf16*>(terms[0] + r * kPitch) + c;
        *to = static_cast<Bf16>(high);
        StoreElement(reinterpret_cast<Bf16*>(terms[1] + r * kPitch) + c,
                     v[i] - __uint_as_float(high << 16));
      } else if (row.exists && row.member < args.group) {
        QueryRow<kD>(args, row)[c] = v[i];
      } else if (row.exists) {
        if (Bf16* to = KeyRow<kD>(args, row); to != nullptr) StoreElement(to + c, v[i]);
      }
    }
  }
  if constexpr (kRotate) {
    __syncthreads();
    float c[4];
    Rotate<kD>(b, SharedAddress(terms[0]), SharedAddress(terms[1]), kPitch, c);
    for (int r = 0; r < 2; ++r) {
      StorePair<kD>(args, RowAt(args, g + 8 * r), column + 2 * j, c[2 * r], c[2 * r + 1]);
    }
  }
}

template <int kD, class In>
KernelStatus Launch(const AttentionInputArgs& args, cudaStream_t stream) {
  const bool rotate = args.transform != nullptr;
  const int query_blocks = QueryBlocks(args);
  const int rows = query_blocks > 0 ? args.num_tokens : args.num_tokens * (args.group + 1);
  const dim3 grid(query_blocks + (rows + kRows - 1) / kRows, args.num_kv_heads,
                  rotate ? kD / kColumns : 1);
  const auto kernel =
      rotate ? AttentionInputKernel<kD, In, true> : AttentionInputKernel<kD, In, false>;
  return LaunchEarly("AttentionInputKernel", kernel, grid, dim3(32 * kWarps), 0, stream, args);
}

template <int kD>
KernelStatus LaunchType(const AttentionInputArgs& args, cudaStream_t stream) {
  return args.qkv.type == ElementType::kFloat32 ? Launch<kD, float>(args, stream)
                                                : Launch<kD, Bf16>(args, stream);
}

}  // namespace

KernelStatus PrepareAttentionInputs(const AttentionInputArgs& args, Stream stream) {
  if (!IsSupportedHeadDim(args.head_dim) || args.group < 1 || args.group > kMaxGroup ||
      2 * args.half_dim > args.head_dim || args.num_kv_heads < 1 || args.num_kv_heads > 65535)
    return KernelStatus::kUnsupported;
  if (args.transform == nullptr && (args.query_transform != nullptr || args.key_mean != nullptr))
    return KernelStatus::kUnsupported;
  if (args.num_tokens <= 0) return KernelStatus::kOk;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  return args.head_dim == 128 ? LaunchType<128>(args, s) : LaunchType<64>(args, s);
}

}  // namespace oscarkv::kernels::cuda
