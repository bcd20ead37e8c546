// Codes with error feedback on a GPU, in the reference's order of operations (shaped_ref.cc).
//
// A thread encodes one row, a thread block up to five page-heads of one (layer, head). What a row's
// errors so far do to its next channels is a product with a triangle of the metric: channels are
// taken in blocks of 16, from the last one down; the sums over all errors behind a block run with
// 16 accumulators in registers, the triangle within it unrolled. Rows lie in shared memory as 4
// channels of all threads behind each other (first the values about their mean, then x, then e),
// and so does one of the metric's two tables, which all threads read at the same address.
//
// This file is compiled without contraction: what fuses says fmaf.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "kernels/cuda_device.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/q2_encode/shaped_cuda.h"

namespace oscarkv::kernels::cuda {
namespace {

constexpr int kBlock = 16;     // channels
constexpr int kMaxPages = 5;   // page-heads of a thread block
constexpr int kNumStarts = 3;  // of the affine fit
constexpr float kLeastStep = 1e-8f, kLargest = 65504.0f, kFp16Limit = 65520.0f;

__device__ __forceinline__ float Start(int i) {
  return i == 0 ? 0.9f : i == 1 ? 0.75f : 0.62f;
}

// The code nearest to a level given as a code's number: ties to even. 1.5 * 2^23 has the unit 1.
__device__ __forceinline__ float Nearest(float level) {
  constexpr float kUnitOne = 12582912.0f;
  return (fminf(fmaxf(level, 0.0f), 3.0f) + kUnitOne) - kUnitOne;
}

template <int kD>
struct ShapedShared {
  float table[kD * kD];
  float weight[kD], ones[kD];
  float4 rows[1];  // [kD / 4][threads]
};

template <int kD>
constexpr size_t SharedBytes(int pages) {
  return offsetof(ShapedShared<kD>, rows) + sizeof(float) * kD * kPageTokens * pages;
}

// One row of a thread, and where it stands.
template <int kD>
struct Row {
  const Bf16* from;  // null: none; it is taken to be zeros
  float4* slot;      // channels 4 c to 4 c + 3 at slot[c * threads]
  int threads;
  float middle, step, inverse;
  bool clamped, nonfinite;
  uint32_t codes[kD / kBlock];  // channel c of block b at bits 2 c
};

__device__ __forceinline__ void LoadSlot(const float4& slot, float* v) {
  v[0] = slot.x;
  v[1] = slot.y;
  v[2] = slot.z;
  v[3] = slot.w;
}

// 8 channels of y.
template <int kD>
__device__ __forceinline__ void LoadValues(Row<kD>* row, int chunk, float (&y)[8]) {
  uint4 words = {};
  if (row->from != nullptr) words = __ldg(reinterpret_cast<const uint4*>(row->from) + chunk);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = UnpackBf16(pairs[i]);
    y[2 * i] = v.x;
    y[2 * i + 1] = v.y;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (!isfinite(y[i])) {
      row->nonfinite = true;
      y[i] = 0;
    }
    const float cut = fminf(fmaxf(y[i], -kLargest), kLargest);
    row->clamped |= cut != y[i];
    y[i] = cut;
  }
}

// f(channel, y) for all channels upwards, 8 at a time: f gets them all.
template <int kD, class F>
__device__ __forceinline__ void ForValues(Row<kD>* row, F&& f) {
#pragma unroll 1
  for (int chunk = 0; chunk < kD / 8; ++chunk) {
    float y[8];
    LoadValues(row, chunk, y);
    f(chunk, y);
  }
}

template <int kD>
__device__ __forceinline__ void StoreChunk(const Row<kD>& row, int chunk, const float (&v)[8]) {
  row.slot[2 * chunk * row.threads] = make_float4(v[0], v[1], v[2], v[3]);
  row.slot[(2 * chunk + 1) * row.threads] = make_float4(v[4], v[5], v[6], v[7]);
}

// The three starts side by side; `c` are values about their mean, lo the value of code 0.
template <int kD>
__device__ void FitAffine(Row<kD>* row, float widen) {
  constexpr float kShare = 1.0f / kD;
  float sum = 0, smallest = 0, largest = 0;
  ForValues(row, [&](int chunk, const float(&y)[8]) {
    if (chunk == 0) smallest = largest = y[0];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum += y[i];
      smallest = fminf(smallest, y[i]);
      largest = fmaxf(largest, y[i]);
    }
  });
  const float mean = sum * kShare;
  ForValues(row, [&](int chunk, const float(&y)[8]) {
    float c[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = y[i] - mean;
    StoreChunk(*row, chunk, c);
  });
  float lo[kNumStarts], step[kNumStarts], inverse[kNumStarts], shift[kNumStarts];
#pragma unroll
  for (int s = 0; s < kNumStarts; ++s) {
    lo[s] = smallest * Start(s);
    step[s] = fmaxf((largest * Start(s) - lo[s]) / 3.0f, kLeastStep);
    lo[s] -= mean;
  }
#pragma unroll 1
  for (int round = 0; round < 3; ++round) {
    float k1[kNumStarts] = {}, k2[kNumStarts] = {}, kc[kNumStarts] = {};
#pragma unroll
    for (int s = 0; s < kNumStarts; ++s) {
      inverse[s] = 1.0f / step[s];
      shift[s] = -(lo[s] * inverse[s]);
    }
#pragma unroll 2
    for (int c4 = 0; c4 < kD / 4; ++c4) {
      float c[4];
      LoadSlot(row->slot[c4 * row->threads], c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int s = 0; s < kNumStarts; ++s) {
          const float k = Nearest(fmaf(c[i], inverse[s], shift[s]));
          k1[s] += k;
          k2[s] = fmaf(k, k, k2[s]);
          kc[s] = fmaf(k, c[i], kc[s]);
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kNumStarts; ++s) {
      const float mean_code = k1[s] * kShare;
      step[s] = fmaxf(kc[s] / fmaxf(k2[s] - k1[s] * mean_code, kLeastStep), kLeastStep);
      lo[s] = -(step[s] * mean_code);
    }
  }
  float error[kNumStarts] = {};
#pragma unroll
  for (int s = 0; s < kNumStarts; ++s) {
    inverse[s] = 1.0f / step[s];
    shift[s] = -(lo[s] * inverse[s]);
  }
#pragma unroll 2
  for (int c4 = 0; c4 < kD / 4; ++c4) {
    float c[4];
    LoadSlot(row->slot[c4 * row->threads], c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int s = 0; s < kNumStarts; ++s) {
        const float k = Nearest(fmaf(c[i], inverse[s], shift[s]));
        const float difference = fmaf(k, step[s], lo[s]) - c[i];
        error[s] = fmaf(difference, difference, error[s]);
      }
    }
  }
  float best = INFINITY, best_lo = 0, best_step = kLeastStep;
#pragma unroll
  for (int s = 0; s < kNumStarts; ++s) {
    if (error[s] < best) {
      best = error[s];
      best_lo = lo[s];
      best_step = step[s];
    }
  }
  row->middle = fmaf(1.5f, best_step, best_lo) + mean;
  row->step = best_step * widen;
}

template <int kD>
__device__ void FitSymmetric(Row<kD>* row, float widen) {
  float squares = 0;
  ForValues(row, [&](int, const float(&y)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(y[i], y[i], squares);
  });
  row->middle = 0;
  row->step = fmaxf(sqrtf(squares * (1.0f / kD)) * 0.996f, kLeastStep) * widen;
}

// 16 floats of table row i for the channels of a block.
template <int kD>
__device__ __forceinline__ void LoadFactors(const float* table, int i, int block,
                                            float (&factors)[kBlock]) {
  const float4* from = reinterpret_cast<const float4*>(table + i * kD + kBlock * block);
#pragma unroll
  for (int c4 = 0; c4 < kBlock / 4; ++c4) LoadSlot(from[c4], factors + 4 * c4);
}

// sums[c] += table[i][block's c] v_i for the i of four channels, up- or downwards; v are the row's
// slots.
template <int kD, bool kUp>
__device__ __forceinline__ void AddFour(const float* table, const Row<kD>& row, int c4, int block,
                                        float (&sums)[kBlock]) {
  float v[4];
  LoadSlot(row.slot[c4 * row.threads], v);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int i = kUp ? n : 3 - n;
    float factors[kBlock];
    LoadFactors<kD>(table, 4 * c4 + i, block, factors);
#pragma unroll
    for (int c = 0; c < kBlock; ++c) sums[c] = fmaf(factors[c], v[i], sums[c]);
  }
}

// Over all channels behind the block, downwards.
template <int kD>
__device__ __forceinline__ void AddBehind(const float* table, const Row<kD>& row, int block,
                                          float (&sums)[kBlock]) {
#pragma unroll 1
  for (int c4 = kD / 4 - 1; c4 >= kBlock / 4 * (block + 1); --c4)
    AddFour<kD, false>(table, row, c4, block, sums);
}

template <int kD>
__device__ __forceinline__ void LoadBlock(const Row<kD>& row, int block, float (&v)[kBlock]) {
#pragma unroll
  for (int c4 = 0; c4 < kBlock / 4; ++c4)
    LoadSlot(row.slot[(kBlock / 4 * block + c4) * row.threads], v + 4 * c4);
}
template <int kD>
__device__ __forceinline__ void StoreBlock(const Row<kD>& row, int block,
                                           const float (&v)[kBlock]) {
#pragma unroll
  for (int h = 0; h < kBlock / 8; ++h) {
    float half[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) half[i] = v[8 * h + i];
    StoreChunk(row, kBlock / 8 * block + h, half);
  }
}

// above[j] = sum over i > j of table[i][j] x_i, where the slots hold x.
template <int kD>
__device__ void SumAbove(const float* table, const Row<kD>& row, float* above) {
#pragma unroll 1
  for (int block = kD / kBlock - 1; block >= 0; --block) {
    float sums[kBlock] = {}, x[kBlock];
    AddBehind(table, row, block, sums);
    LoadBlock(row, block, x);
#pragma unroll
    for (int i = kBlock - 1; i > 0; --i) {
      float factors[kBlock];
      LoadFactors<kD>(table, kBlock * block + i, block, factors);
#pragma unroll
      for (int c = 0; c < i; ++c) sums[c] = fmaf(factors[c], x[i], sums[c]);
    }
#pragma unroll
    for (int c = 0; c < kBlock; ++c) above[kBlock * block + c] = sums[c];
  }
}

// Inner products in the metric, as the reference's.
struct Products {
  float qq, qx, q1, x1, xx;
};

// What one pass over the channels, downwards, does.
struct Pass {
  bool before;  // x_j gets the sums over i < j of errors so far
  bool choose;  // codes are chosen; else they stay
  bool last;    // products are taken
};

template <int kD>
__device__ void RunPass(const Pass& pass, const ShapedShared<kD>& shared, const float* above_x,
                        Row<kD>* row, Products* p) {
  const float* table = shared.table;
#pragma unroll 1
  for (int block = kD / kBlock - 1; block >= 0; --block) {
    float x[kBlock], e[kBlock], target[kBlock], above[kBlock] = {};
#pragma unroll
    for (int h = 0; h < kBlock / 8; ++h) {
      float y[8];
      LoadValues(row, kBlock / 8 * block + h, y);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[8 * h + i] = (y[i] - row->middle) * row->inverse;
    }
#pragma unroll
    for (int c = 0; c < kBlock; ++c) target[c] = x[c];
    if (pass.before || !pass.choose) LoadBlock(*row, block, e);
    if (pass.before) {
#pragma unroll 1
      for (int c4 = 0; c4 < kBlock / 4 * block; ++c4)
        AddFour<kD, true>(table, *row, c4, block, target);
#pragma unroll
      for (int i = 0; i < kBlock - 1; ++i) {
        float factors[kBlock];
        LoadFactors<kD>(table, kBlock * block + i, block, factors);
#pragma unroll
        for (int c = i + 1; c < kBlock; ++c) target[c] = fmaf(factors[c], e[i], target[c]);
      }
    }
    AddBehind(table, *row, block, above);
    uint32_t codes = pass.choose ? 0 : row->codes[block];
#pragma unroll
    for (int c = kBlock - 1; c >= 0; --c) {
      float q;
      if (pass.choose) {
        const float code = Nearest((target[c] + above[c]) + 1.5f);
        q = code - 1.5f;
        e[c] = x[c] - q;
        codes |= static_cast<uint32_t>(code) << 2 * c;
      } else {
        q = static_cast<float>(codes >> 2 * c & 3) - 1.5f;
      }
      if (c > 0) {
        float factors[kBlock];
        LoadFactors<kD>(table, kBlock * block + c, block, factors);
#pragma unroll
        for (int k = 0; k < c; ++k) above[k] = fmaf(factors[k], e[c], above[k]);
      }
      if (pass.last) {
        const int j = kBlock * block + c;
        const float ax = above_x[j], aq = ax - above[c];
        const float wx = shared.weight[j] * x[c], wq = shared.weight[j] * q;
        p->qq = fmaf(wq, fmaf(2.0f, aq, q), p->qq);
        p->qx = fmaf(wq, x[c] + ax, fmaf(wx, aq, p->qx));
        p->xx = fmaf(wx, fmaf(2.0f, ax, x[c]), p->xx);
        p->q1 = fmaf(shared.ones[j], q, p->q1);
        p->x1 = fmaf(shared.ones[j], x[c], p->x1);
      }
    }
    if (pass.choose) StoreBlock(*row, block, e);
    row->codes[block] = codes;
  }
}

// Scale and offset before their rounding.
template <int kD>
__device__ void Refit(bool symmetric, float n, float gain, const Row<kD>& row, const Products& p,
                      float* scale, float* offset) {
  float alpha = 1, beta = 0;  // x ~ alpha q + beta
  if (symmetric) {
    const float fitted = p.qx / fmaxf(p.qq, 1e-9f);
    if (fitted > 0.3f && fitted < 3.0f) alpha = fitted;
  } else {
    const float determinant = fmaxf(p.qq * n - p.q1 * p.q1, 1e-9f);
    const float fitted = (p.qx * n - p.x1 * p.q1) / determinant;
    const float moved = (p.qq * p.x1 - p.q1 * p.qx) / determinant;
    if (fitted > 0.3f && fitted < 3.0f && fabsf(moved) <= 3.0f) {
      alpha = fitted;
      beta = moved;
    }
  }
  const float m = row.middle / row.step, b = beta + m;
  const float yy = p.xx + (2.0f * m) * p.x1 + (m * m) * n;
  const float approximated = alpha * p.qx + (alpha * m) * p.q1 + b * p.x1 + (b * m) * n;
  const float ratio = fminf(fmaxf(yy / fmaxf(approximated, 1e-9f), 0.8f), 1.5f);
  const float g = 1.0f + gain * (ratio - 1.0f);
  const float step = row.step * alpha;
  *scale = step * g;
  *offset = (row.middle + row.step * beta - 1.5f * step) * g;
}

__device__ __forceinline__ __half ToFp16(float v) {
  return __float2half_rn(fminf(fmaxf(v, -kLargest), kLargest));
}

// The words of K's layout that hold this token alone.
template <int kD>
__device__ void StoreKeyCodes(const Row<kD>& row, int token, uint32_t* words) {
  const int tb = token >> 4, g = token & 7, r = token >> 3 & 1;
  constexpr int kWords = kD / 32;  // of a slot
#pragma unroll
  for (int ch = 0; ch < kD / 64; ++ch) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t word = 0;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            word |= (row.codes[4 * ch + p] >> 2 * (8 * u + 2 * j + e) & 3)
                    << (16 * e + 8 * u + 2 * p);
        }
      }
      words[tb * 32 * kWords + kWords * Slot(g, j) + 2 * ch + r] = word;
    }
  }
}

// V's words hold four tokens (e, u) of this warp: each lane of theirs writes a quarter of them.
template <int kD>
__device__ void StoreValueCodes(const Row<kD>& row, int token, bool exists, uint32_t* words) {
  const int tb = token >> 4, u = token >> 3 & 1, j = token >> 1 & 3, e = token & 1;
  constexpr int kWords = kD / 32;
#pragma unroll
  for (int ch = 0; ch < kD / 64; ++ch) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        uint32_t word = 0;
#pragma unroll
        for (int p = 0; p < 4; ++p)
          word |= (row.codes[4 * ch + p] >> 2 * (8 * r + g) & 3) << (16 * e + 8 * u + 2 * p);
        word |= __shfl_xor_sync(kAllLanes, word, 1);
        word |= __shfl_xor_sync(kAllLanes, word, 8);
        if (exists && g % 4 == 2 * u + e)
          words[tb * 32 * kWords + kWords * Slot(g, j) + 2 * ch + r] = word;
      }
    }
  }
}

template <int kD>
__device__ void LoadTable(const float* from, ShapedShared<kD>* shared) {
  __syncthreads();  // everybody has done with what stood there
  const float4* source = reinterpret_cast<const float4*>(from);
  float4* to = reinterpret_cast<float4*>(shared->table);
  for (int i = threadIdx.x; i < kD * kD / 4; i += blockDim.x) to[i] = __ldg(source + i);
  __syncthreads();
}

// blockIdx: a few of the layer's blocks, the kv head, the layer.
template <int kD>
__global__ void __launch_bounds__(kMaxPages* kPageTokens, 1)
    ShapedKernel(const __grid_constant__ ShapedBatchArgs args) {
  extern __shared__ __align__(128) uint8_t memory[];
  auto* shared = reinterpret_cast<ShapedShared<kD>*>(memory);
  const int token = threadIdx.x % kPageTokens, head = blockIdx.y, layer = blockIdx.z;
  const int pages = static_cast<int>(blockDim.x) / kPageTokens;
  const int block =
      (static_cast<int>(blockIdx.x) * pages + static_cast<int>(threadIdx.x) / kPageTokens) *
          args.num_layers +
      layer;
  const float* tables = args.tables + (static_cast<int64_t>(layer) * args.num_kv_heads + head) *
                                          static_cast<int64_t>(ShapedTableFloats(kD));
  const float* sweep = tables;
  const float* feedback = sweep + kD * kD;
  const float* weight = feedback + kD * kD;
  const float* ones = weight + kD;
  const float* numbers = ones + kD;
  const float widen = numbers[1], gain = numbers[2];
  for (int i = threadIdx.x; i < kD; i += blockDim.x) {
    shared->weight[i] = weight[i];
    shared->ones[i] = ones[i];
  }

  Row<kD> row;
  row.from = nullptr;
  if (block < args.num_blocks && args.row_begin[block] >= 0) {
    row.from =
        args.rows + args.row_begin[block] + token * args.row_stride + head * args.head_stride;
  }
  row.slot = shared->rows + threadIdx.x;
  row.threads = static_cast<int>(blockDim.x);
  row.clamped = row.nonfinite = false;
  args.symmetric ? FitSymmetric(&row, widen) : FitAffine(&row, widen);
  row.inverse = 1.0f / row.step;
  ForValues(&row, [&](int chunk, const float(&y)[8]) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = (y[i] - row.middle) * row.inverse;
    StoreChunk(row, chunk, x);
  });

  float above_x[kD];
  Products p = {};
  LoadTable(sweep, shared);
  SumAbove(shared->table, row, above_x);
  LoadTable(feedback, shared);
  RunPass({.before = false, .choose = true, .last = false}, *shared, above_x, &row, &p);
  LoadTable(sweep, shared);
#pragma unroll 1
  for (int i = min(1, args.sweeps); i <= args.sweeps; ++i) {
    RunPass({.before = i > 0, .choose = i > 0, .last = i == args.sweeps}, *shared, above_x, &row,
            &p);
  }
  float scale, offset;
  Refit(args.symmetric, numbers[0], gain, row, p, &scale, &offset);

  const bool exists = row.from != nullptr;
  uint8_t* page = nullptr;
  if (exists) {
    page = args.pages + args.page_begin[block] +
           head * static_cast<int64_t>(PageHeadBytes(kD, !args.symmetric));
    uint8_t* plane = page + ScaleOffset(kD, args.side, !args.symmetric) + 2 * MetaIndex(token);
    *reinterpret_cast<__half*>(plane) = ToFp16(scale);
    if (!args.symmetric) *reinterpret_cast<__half*>(plane + 2 * kPageTokens) = ToFp16(offset);
  }
  auto* words = reinterpret_cast<uint32_t*>(page + static_cast<int>(args.side) * CodesBytes(kD));
  if (args.side == Side::kValue) {
    StoreValueCodes(row, token, exists, words);
  } else if (exists) {
    StoreKeyCodes(row, token, words);
  }
  if (!exists) return;
  if (row.nonfinite) {
    if (args.counters != nullptr) atomicAdd(&args.counters->nonfinite_rows, 1ull);
    if (args.block_nonfinite != nullptr) args.block_nonfinite[block] = 1;
  } else if (args.counters != nullptr && (row.clamped || !(fabsf(scale) < kFp16Limit) ||
                                          (!args.symmetric && !(fabsf(offset) < kFp16Limit)))) {
    atomicAdd(&args.counters->clamped_fp16, 1ull);
  }
}

template <int kD>
KernelStatus Launch(const ShapedBatchArgs& args, cudaStream_t stream) {
  int device = 0, sms = 0, shared = 0;
  KernelStatus status = Check(cudaGetDevice(&device), "cudaGetDevice");
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (status == KernelStatus::kOk)
      status = Check(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
  };
  get(&sms, cudaDevAttrMultiProcessorCount);
  get(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (status != KernelStatus::kOk) return status;
  int most = kMaxPages;
  while (most > 0 && SharedBytes<kD>(most) > static_cast<size_t>(shared)) --most;
  if (most == 0) return KernelStatus::kUnsupported;
  status = Check(cudaFuncSetAttribute(ShapedKernel<kD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(SharedBytes<kD>(most))),
                 "cudaFuncSetAttribute");
  if (status != KernelStatus::kOk) return status;
  const int blocks = args.num_blocks / args.num_layers;
  const int64_t page_heads = int64_t{args.num_blocks} * args.num_kv_heads;
  // As many page-heads together as it takes to fill the GPU once.
  const int pages = static_cast<int>(std::clamp<int64_t>((page_heads + sms - 1) / sms, 1, most));
  const dim3 grid((blocks + pages - 1) / pages, args.num_kv_heads, args.num_layers);
  ShapedKernel<kD><<<grid, pages * kPageTokens, SharedBytes<kD>(pages), stream>>>(args);
  return Check(cudaGetLastError(), "ShapedKernel");
}

}  // namespace

void FillShapedTable(const ShapedArgs& args, float* table) {
  const size_t d = args.head_dim;
  const auto put = [&table](const float* from, size_t n) {
    std::memcpy(table, from, n * sizeof(float));
    table += n;
  };
  put(args.metric.sweep, d * d);
  put(args.metric.feedback, d * d);
  put(args.metric.weight, d);
  put(args.metric.ones, d);
  const float numbers[4] = {args.metric.ones_norm, args.widen, args.gain, 0};
  put(numbers, 4);
}

KernelStatus EncodeShapedBlocks(const ShapedBatchArgs& args, Stream stream) {
  if (!IsSupportedHeadDim(args.head_dim) || args.sweeps < 0 || args.sweeps > kMaxSweeps ||
      args.num_layers < 1 || args.num_layers > 65535 || args.num_kv_heads > 65535 ||
      args.num_blocks % args.num_layers != 0)
    return KernelStatus::kUnsupported;
  if (args.num_blocks <= 0 || args.num_kv_heads <= 0) return KernelStatus::kOk;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  return args.head_dim == 128 ? Launch<128>(args, s) : Launch<64>(args, s);
}

}  // namespace oscarkv::kernels::cuda
