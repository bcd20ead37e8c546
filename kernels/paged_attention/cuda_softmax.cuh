// One warp's online softmax: query operands, scores, weights, output sums (see cuda_warp.cuh).
#pragma once

#include "kernels/paged_attention/cuda_warp.cuh"

namespace oscarkv::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// QK of one position: dots = 4 dots + <q, codes of position p of a slot's words>; position 0
// starts.
template <int kWords>
__device__ __forceinline__ void AddCodes(const uint32_t (&words)[kWords], int p, uint32_t q0,
                                         uint32_t q1, int (&dots)[4]) {
  const uint32_t mask = 0x03030303u << 2 * p;
  int c[4];
  if constexpr (kWords == 4) {
    const uint32_t a[4] = {words[0] & mask, words[1] & mask, words[2] & mask, words[3] & mask};
    MmaBytes32(c, a, q0, q1);
  } else {
    MmaBytes16(c, words[0] & mask, words[1] & mask, q0);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) dots[i] = p == 0 ? c[i] : dots[i] * 4 + c[i];
}

// Row operand `a` of step 4ch+p from V's words: fp16 subnormals code * 4^(p+1) * 2^-24. Tensor
// cores align a subnormal product as if it were 2^-14 times the other factor, so codes in the
// lowest bits would lose most: two bits higher costs a shift and gains two bits of every product.
template <int kWords>
__device__ __forceinline__ void CodeOperand(const uint32_t (&words)[kWords], int step,
                                            uint32_t (&a)[4]) {
  const uint32_t mask = 0x000C000Cu << 2 * (step % 4);
  const uint32_t w0 = words[step / 4 * 2], w1 = words[step / 4 * 2 + 1];
  a[0] = w0 * 4 & mask;
  a[1] = w1 * 4 & mask;
  a[2] = w0 >> 6 & mask;
  a[3] = w1 >> 6 & mask;
}
// What the codes of a step (of a row block of V) must be multiplied with to be codes * 2^-24.
__device__ constexpr float CodeScale(int step) {
  return 1.0f / (4 << 2 * (step % 4));
}

template <int kWords>
__device__ __forceinline__ void LoadSlot(const uint8_t* codes, int token_block, int slot,
                                         uint32_t (&words)[kWords]) {
  const uint8_t* at = codes + (token_block * 32 + slot) * 4 * kWords;
  if constexpr (kWords == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
    words[0] = v.x, words[1] = v.y;
  }
}

// Scales and offsets of one side: those of a lane's tokens (16 tb + g, 16 tb + g + 8), four pairs.
template <bool kOffsets>
struct TokenPlanes {
  // planes: a lane's 16 bytes of the scales; those of the offsets come 128 bytes further.
  __device__ explicit TokenPlanes(const uint4* planes) : scales(planes[0]) {
    if constexpr (kOffsets) offsets = planes[8];
  }
  __device__ float2 Scale(int tb) const {
    return UnpackFp16(reinterpret_cast<const uint32_t*>(&scales)[tb]);
  }
  __device__ float2 Offset(int tb) const {
    if constexpr (kOffsets) return UnpackFp16(reinterpret_cast<const uint32_t*>(&offsets)[tb]);
    const float2 scale = Scale(tb);
    return {kCentredOffset * scale.x, kCentredOffset * scale.y};
  }
  uint4 scales, offsets;
};

template <class C>
class Softmax {
 public:
  __device__ Softmax(const PagedAttentionArgs& args, SharedMemory<C>* shared, int warp)
      : args_(args),
        shared_(shared),
        warp_(warp),
        id_(threadIdx.x & 31),
        sums_(shared->sums[warp] + id_) {}

  // An empty softmax for a segment's query heads. The whole block calls it: every warp makes its
  // part of the operands of q, in shared memory. Ends with a barrier.
  __device__ void Start(const Segment& segment) {
    PrepareQuery(args_.q + (int64_t{segment.sequence_index} * args_.num_kv_heads + segment.head) *
                               args_.group * C::kHeadDim);
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) max_[k] = sum_[k] = offset_sum_[k] = 0;
    ClearOut();
#pragma unroll
    for (int i = 0; i < C::kVectors; ++i) sums_[32 * i] = {0, 0, 0, 0};
    empty_ = true;
    retune_ = false;
    __syncthreads();
  }

  // To be called between tiles and pages.
  __device__ void StartPages() {
    retune_ = !empty_;  // the maximum so far was found without regard to V's scales
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
#pragma unroll
      for (int i = 0; i < C::kSteps; ++i) {
#pragma unroll
        for (int digit = 0; digit < C::kDigitSets; ++digit)
          query_[digit][n][i] = shared_->page_query[digit][n][i][id_];
      }
    }
    float sums[C::kSplit ? 2 : C::kLaneHeads];
#pragma unroll
    for (int k = 0; k < (C::kSplit ? 2 : C::kLaneHeads); ++k) {
      const float(&of_warps)[C::kWarps] = shared_->query_sums[k / 2 * 8 + 2 * lane_.j + k % 2];
      sums[k] = 0;
#pragma unroll
      for (int w = 0; w < C::kWarps; ++w) sums[k] += of_warps[w];
      if constexpr (!C::kSplit) query_sum_[k] = sums[k];
    }
    if constexpr (C::kSplit) query_sum_[0] = sums[0] + sums[1];
  }

  // Scores of a tile and their weights, as column operands for AddTileOut.
  __device__ void AddTileScores(uint32_t tile, int tokens) {
    float x[C::kColumnGroups][4] = {};
    const int row = id_ & 15;
#pragma unroll
    for (int s = 0; s < C::kSteps; ++s) {
      uint32_t a[4];
      LoadMatrices(a, tile + 2 * C::kHeadDim * row + 16 * ((2 * s + (id_ >> 4)) ^ (row & 7)));
#pragma unroll
      for (int n = 0; n < C::kColumnGroups; ++n) {
        const uint4 high = shared_->tile_query[n][s / 2][id_];
        const uint4 low = shared_->tile_query_low[n][s / 2][id_];
        MmaBf16(x[n], a, s % 2 ? high.z : high.x, s % 2 ? high.w : high.y);
        MmaBf16(x[n], a, s % 2 ? low.z : low.x, s % 2 ? low.w : low.y);
      }
    }
    float y[C::kLaneHeads][2];  // scores minus maximum, of tokens g and g + 8
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float score = C::kSplit ? x[0][2 * r] + x[0][2 * r + 1] : x[k / 2][2 * r + k % 2];
        y[k][r] = lane_.g + 8 * r < tokens ? score - max_[k] : -INFINITY;
      }
    }
    TileWeights(y);
  }

  __device__ void AddTileOut(uint32_t tile) {
    const int row = (id_ & 7) + (id_ >> 4) * 8;
#pragma unroll
    for (int s = 0; s < C::kSteps; ++s) {
      uint32_t a[4];
      LoadMatricesTransposed(
          a, tile + 2 * C::kHeadDim * row + 16 * ((2 * s + (id_ >> 3 & 1)) ^ (row & 7)));
#pragma unroll
      for (int n = 0; n < C::kColumnGroups; ++n) {
        MmaBf16(out_[n][s], a, tile_weights_[n][0], tile_weights_[n][1]);
        if (!C::kSplit) MmaBf16(out_[n][s], a, tile_weights_low_[n][0], tile_weights_low_[n][1]);
      }
    }
  }

  __device__ bool fine() const {
    return fine_;
  }
  template <bool kFine>  // fine(): with the third digit of q
  __device__ void AddPage(const uint8_t* page);

  // Adds the output sums (of tiles or of pages) to those in shared memory and clears them.
  template <bool kPages>
  __device__ void Flush() {
    const float nothing[C::kLaneHeads] = {};
    Flush<kPages>(nothing);
  }

  // Everything this warp has to shared memory.
  __device__ void Close() {
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        sum_[k] += __shfl_xor_sync(kAllLanes, sum_[k], lanes);
        offset_sum_[k] += __shfl_xor_sync(kAllLanes, offset_sum_[k], lanes);
      }
      if (lane_.g == 0) {
        const int head = C::kSplit ? lane_.j : k / 2 * 8 + 2 * lane_.j + k % 2;
        shared_->max[warp_][head] = empty_ ? -INFINITY : max_[k];
        shared_->sum[warp_][head] = sum_[k];
      }
    }
    Flush<true>(offset_sum_);
  }

 private:
  // What makes codes of the output sums of pages.
  static __device__ constexpr float PageFactor(int block) {
    return 16777216.0f * CodeScale(block);
  }
  // The same, and adds `extra` of each head.
  template <bool kPages>
  __device__ void Flush(const float (&extra)[C::kLaneHeads]) {
#pragma unroll
    for (int i = 0; i < C::kVectors; ++i) {
      float4 v = sums_[32 * i];
      if constexpr (C::kSplit) {
        const float(&a)[4] = out_[0][2 * i];
        const float(&b)[4] = out_[0][2 * i + 1];
        const float fa = kPages ? PageFactor(2 * i) : 1, fb = kPages ? PageFactor(2 * i + 1) : 1;
        v.x += fmaf(fa, a[0] + a[1], extra[0]);
        v.y += fmaf(fa, a[2] + a[3], extra[0]);
        v.z += fmaf(fb, b[0] + b[1], extra[0]);
        v.w += fmaf(fb, b[2] + b[3], extra[0]);
      } else {
        const int n = i / C::kSteps;
        const float(&a)[4] = out_[n][i % C::kSteps];
        const float f = kPages ? PageFactor(i % C::kSteps) : 1;
        v.x += fmaf(f, a[0], extra[2 * n]);
        v.y += fmaf(f, a[1], extra[2 * n + 1]);
        v.z += fmaf(f, a[2], extra[2 * n]);
        v.w += fmaf(f, a[3], extra[2 * n + 1]);
      }
      sums_[32 * i] = v;
    }
    ClearOut();
  }
  __device__ void ClearOut() {
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
#pragma unroll
      for (int s = 0; s < C::kSteps; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[n][s][i] = 0;
      }
    }
  }
  // Operands of q. Of lane 4g+j, operand i holds channels 8 i + 2 j and + 1 of column g's head;
  // each warp makes those of one step. For tiles q scale log2(e), as bf16: its high and its middle
  // part; split: columns (high, middle) and (low, 0). For pages digits of q S, S = 32512 / largest
  // |q|: bytes 2 e + u are channels 16 step + 8 u + 2 j + e; split: columns (high, low) and (third,
  // 0).
  __device__ void PrepareQuery(const float* q) {
    constexpr int kOwn = 2;  // operands of one warp: those of step warp_
    float2 own[C::kColumnGroups][kOwn];
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
      const int head = C::kSplit ? lane_.g / 2 : 8 * n + lane_.g;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        const int at = head * C::kHeadDim + 8 * (warp_ * kOwn + k) + 2 * lane_.j;
        own[n][k] = head < args_.group && warp_ < C::kSteps
                        ? *reinterpret_cast<const float2*>(q + at)
                        : float2{0, 0};
      }
    }
    float largest = 0;
#pragma unroll
    for (int i = 0; i < C::kHeads * C::kHeadDim / 128; ++i) {
      const int at = 128 * i + 4 * id_;
      if (at >= args_.group * C::kHeadDim) break;
      const float4 v = *reinterpret_cast<const float4*>(q + at);
      largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
    largest = fmaxf(largest, 1e-30f);
    const float to_digits = 32512 / largest, from_digits = largest / 32512;
    const float factor = args_.scale * kLog2E;
    score_factor_ = factor * from_digits / 64;
    fine_ = largest * factor > kCoarseLimit;
    if (warp_ >= C::kSteps) {
      if (id_ < 8 * C::kColumnGroups) shared_->query_sums[id_][warp_] = 0;
      return;
    }

    const bool odd = lane_.g & 1;
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
      int column_sum = 0, third_sum = 0;
      uint32_t high_digits = 0, low_digits = 0, third_digits = 0;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        const int i = warp_ * kOwn + k;
        const float2 x = {own[n][k].x * factor, own[n][k].y * factor};
        const float2 high = UnpackBf16(PackBf16(x.x, x.y));
        const float2 rest = {x.x - high.x, x.y - high.y};
        const float2 middle = UnpackBf16(PackBf16(rest.x, rest.y));
        Operand(shared_->tile_query, n, i) =
            C::kSplit && odd ? PackBf16(middle.x, middle.y) : PackBf16(high.x, high.y);
        Operand(shared_->tile_query_low, n, i) =
            !C::kSplit ? PackBf16(middle.x, middle.y)
            : odd      ? 0
                       : PackBf16(rest.x - middle.x, rest.y - middle.y);

        const float y[2] = {own[n][k].x * to_digits, own[n][k].y * to_digits};
#pragma unroll
        for (int e = 0; e < 2; ++e) {  // byte 2 e + u
          const int digits = __float2int_rn(y[e]), high = (digits + 128) >> 8;
          const int third = min(__float2int_rn((y[e] - static_cast<float>(digits)) * 256), 127);
          column_sum += digits;
          third_sum += third;
          third_digits |= static_cast<uint32_t>(third & 255) << (16 * e + 8 * k);
          high_digits |= static_cast<uint32_t>(high & 255) << (16 * e + 8 * k);
          low_digits |= static_cast<uint32_t>(digits - 256 * high & 255) << (16 * e + 8 * k);
        }
      }
      if constexpr (C::kSplit) {
        shared_->page_query[0][n][warp_][id_] = odd ? low_digits : high_digits;
        shared_->page_query[1][n][warp_][id_] = odd ? 0 : third_digits;
      } else {
        shared_->page_query[0][n][warp_][id_] = high_digits;
        shared_->page_query[1][n][warp_][id_] = low_digits;
        shared_->page_query[2][n][warp_][id_] = third_digits;
      }
      float sum = static_cast<float>(column_sum);
      if (fine_) sum += static_cast<float>(third_sum) / 256;
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (lane_.j == 0) {
        shared_->query_sums[8 * n + lane_.g][warp_] =
            C::kSplit && odd ? 0 : sum * from_digits * factor;
      }
    }
  }
  __device__ uint32_t& Operand(QueryOperands<C>& operands, int n, int i) const {
    return reinterpret_cast<uint32_t*>(&operands[n][i / 4][id_])[i % 4];
  }

  __device__ void AddThirdDigit(const uint8_t* page, int slot,
                                float (&x)[C::kColumnGroups][kPageTokens / 16][C::kSplit ? 2 : 4]);

  // Weights of a tile from scores minus maximum.
  __device__ void TileWeights(float (&y)[C::kLaneHeads][2]) {
    float p[C::kLaneHeads][2];
    for (int pass = 0;; ++pass) {
      bool too_large = empty_;
#pragma unroll
      for (int k = 0; k < C::kLaneHeads; ++k) {
        p[k][0] = Exp2(y[k][0]);
        p[k][1] = Exp2(y[k][1]);
        too_large |= !(p[k][0] + p[k][1] < kLargestSum);
      }
      if (pass == 1 || !__any_sync(kAllLanes, too_large)) break;
      float largest[C::kLaneHeads];
#pragma unroll
      for (int k = 0; k < C::kLaneHeads; ++k) largest[k] = fmaxf(y[k][0], y[k][1]);
      Rescale(largest, 0);
#pragma unroll
      for (int k = 0; k < C::kLaneHeads; ++k) {
        y[k][0] -= largest[k];
        y[k][1] -= largest[k];
      }
    }
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) sum_[k] += p[k][0] + p[k][1];
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (C::kSplit) {
          const float high = UnpackBf16(PackBf16(p[0][r], 0)).x;
          tile_weights_[n][r] = Transpose8x8(PackBf16(high, p[0][r] - high));
        } else {
          const uint32_t packed = PackBf16(p[2 * n][r], p[2 * n + 1][r]);
          const float2 high = UnpackBf16(packed);
          tile_weights_[n][r] = Transpose8x8(packed);
          tile_weights_low_[n][r] =
              Transpose8x8(PackBf16(p[2 * n][r] - high.x, p[2 * n + 1][r] - high.y));
        }
      }
    }
  }

  // Moves the maxima by the largest of the lanes' `step`s, but by no less than `least`; on return
  // `step` is by how much they moved.
  __device__ void Rescale(float (&step)[C::kLaneHeads], float least) {
    float factor[C::kLaneHeads];
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        step[k] = fmaxf(step[k], __shfl_xor_sync(kAllLanes, step[k], lanes));
      if (!empty_) step[k] = fmaxf(step[k], least);
      factor[k] = empty_ ? 1.0f : Exp2(-step[k]);
      max_[k] += step[k];
      sum_[k] *= factor[k];
      offset_sum_[k] *= factor[k];
    }
    const bool empty = empty_;
    empty_ = false;
    if (empty) return;
#pragma unroll
    for (int n = 0; n < C::kColumnGroups; ++n) {
#pragma unroll
      for (int s = 0; s < C::kSteps; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[n][s][i] *= factor[C::kSplit ? 0 : 2 * n + i % 2];
      }
    }
#pragma unroll
    for (int i = 0; i < C::kVectors; ++i) {
      float4 v = sums_[32 * i];
      const float f0 = factor[C::kSplit ? 0 : i / C::kSteps * 2];
      const float f1 = factor[C::kSplit ? 0 : i / C::kSteps * 2 + 1];
      v.x *= f0;
      v.y *= f1;
      v.z *= f0;
      v.w *= f1;
      sums_[32 * i] = v;
    }
  }

  static constexpr float kLargestSum = 1152921504606846976.0f;  // 2^60

  const PagedAttentionArgs& args_;
  SharedMemory<C>* const shared_;
  const int warp_, id_;
  float4* const sums_;  // this lane's; others lie 32 apart
  const Lane lane_;
  bool empty_ = true, retune_ = false;
  bool fine_ = false;  // q has a third digit
  float score_factor_ = 0;
  float query_sum_[C::kLaneHeads];
  float max_[C::kLaneHeads], sum_[C::kLaneHeads], offset_sum_[C::kLaneHeads];
  float out_[C::kColumnGroups][C::kSteps][4];
  uint32_t query_[C::kDigitSets][C::kColumnGroups][C::kSteps];  // operands of pages
  uint32_t tile_weights_[C::kColumnGroups][2], tile_weights_low_[C::kColumnGroups][2];
};

template <class C>
__device__ void Softmax<C>::AddThirdDigit(
    const uint8_t* page, int slot,
    float (&x)[C::kColumnGroups][kPageTokens / 16][C::kSplit ? 2 : 4]) {
#pragma unroll 1
  for (int n = 0; n < C::kColumnGroups; ++n) {
#pragma unroll
    for (int tb = 0; tb < kPageTokens / 16; ++tb) {
      uint32_t words[C::kWords];
      LoadSlot<C::kWords>(page, tb, slot, words);
      const auto& q = shared_->page_query[C::kDigitSets][n];
      int dots[4];
#pragma unroll
      for (int p = 0; p < 4; ++p)
        AddCodes<C::kWords>(words, p, q[p][id_], q[(p + 4) % C::kSteps][id_], dots);
#pragma unroll
      for (int i = 0; i < (C::kSplit ? 2 : 4); ++i) {
        const float add = static_cast<float>(dots[C::kSplit ? 2 * i : i]) * (1.0f / 256);
#pragma unroll
        for (int m = 0; m < C::kColumnGroups; ++m) x[m][tb][i] += m == n ? add : 0;
      }
    }
  }
}

// Long on purpose: one page from bytes to output sums lives in registers, and what the compiler
// spills depends on every value that is passed on.
template <class C>
template <bool kFine>
__device__ void Softmax<C>::AddPage(const uint8_t* page) {
  constexpr int kBlocks = kPageTokens / 16, kGroups = C::kColumnGroups;
  const int slot = Slot(lane_.g, lane_.j);

  // QK: x[n][tb] are 64 <digits of q, codes> of tokens 16 tb + g and + 8.
  float x[kGroups][kBlocks][C::kSplit ? 2 : 4];
#pragma unroll
  for (int tb = 0; tb < kBlocks; ++tb) {
    uint32_t words[C::kWords];
    LoadSlot<C::kWords>(page, tb, slot, words);
    int dots[C::kDigitSets][kGroups][4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int set = 0; set < C::kDigitSets; ++set) {
          const uint32_t(&q)[C::kSteps] = query_[set][n];
          AddCodes<C::kWords>(words, p, q[p], q[(p + 4) % C::kSteps], dots[set][n]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < (C::kSplit ? 2 : 4); ++i) {
        const int dot = C::kSplit ? dots[0][n][2 * i] * 256 + dots[0][n][2 * i + 1]
                                  : dots[0][n][i] * 256 + dots[C::kDigitSets - 1][n][i];
        x[n][tb][i] = static_cast<float>(dot);
      }
    }
  }
  if constexpr (kFine) AddThirdDigit(page, slot, x);

  // A lane's 8 tokens stand together in a plane: element 2 tb + r is token 16 tb + g + 8 r.
  const uint4* planes = reinterpret_cast<const uint4*>(page + MetaOffset(C::kHeadDim)) + lane_.g;
  float y[C::kLaneHeads][kBlocks][2];
  {
    const TokenPlanes<C::kOffsets> of(planes);
#pragma unroll
    for (int tb = 0; tb < kBlocks; ++tb) {
      const float2 scale = of.Scale(tb), offset = of.Offset(tb);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float s = (r ? scale.y : scale.x) * score_factor_, o = r ? offset.y : offset.x;
#pragma unroll
        for (int k = 0; k < C::kLaneHeads; ++k) {
          const float dot = C::kSplit ? x[0][tb][r] : x[k / 2][tb][2 * r + k % 2];
          y[k][tb][r] = fmaf(dot, s, fmaf(o, query_sum_[k], -max_[k]));
        }
      }
    }
  }

  // Weights p * scale as column operands: of heads (2j, 2j + 1), or (high, low) of head j.
  uint32_t w[kGroups][kBlocks][2];
  const TokenPlanes<C::kOffsets> of(planes + (C::kOffsets ? 16 : 8));
  float sum[C::kLaneHeads], offset_sum[C::kLaneHeads];
  const auto weights = [&] {  // whether they are in range
    __half2 largest = __float2half2_rn(0);
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) sum[k] = offset_sum[k] = 0;
#pragma unroll
    for (int tb = 0; tb < kBlocks; ++tb) {
      const float2 scale = of.Scale(tb), offset = of.Offset(tb);
      float ps[C::kLaneHeads][2];
#pragma unroll
      for (int k = 0; k < C::kLaneHeads; ++k) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float p = Exp2(y[k][tb][r]);
          sum[k] += p;
          offset_sum[k] = fmaf(p, r ? offset.y : offset.x, offset_sum[k]);
          ps[k][r] = p * (r ? scale.y : scale.x);
        }
      }
      if constexpr (C::kSplit) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float high = __uint_as_float(__float_as_uint(ps[0][r]) & 0xffffe000u);
          w[0][tb][r] = PackFp16(high, ps[0][r] - high);
          largest = __hmax2(largest, *reinterpret_cast<const __half2*>(&w[0][tb][r]));
        }
      } else {
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            w[n][tb][r] = PackFp16(ps[2 * n][r], ps[2 * n + 1][r]);
            largest = __hmax2(largest, *reinterpret_cast<const __half2*>(&w[n][tb][r]));
          }
        }
      }
    }
    // Inf + 0x0400 has the sign bit of an fp16.
    bool too_large =
        (*reinterpret_cast<const uint32_t*>(&largest) + 0x04000400u & 0x80008000u) != 0;
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) too_large |= !(sum[k] < kLargestSum);
    return !too_large;
  };
  if (__any_sync(kAllLanes, !weights() || empty_ || retune_)) {
    float step[C::kLaneHeads];
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) {
      step[k] = -INFINITY;
#pragma unroll
      for (int tb = 0; tb < kBlocks; ++tb) {
        const float2 scale = of.Scale(tb);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float at = y[k][tb][r];
          step[k] = fmaxf(step[k], fmaxf(at + Log2(r ? scale.y : scale.x) - 7, at - 31));
        }
      }
    }
    Rescale(step, retune_ ? -31 : 0);
    retune_ = false;
#pragma unroll
    for (int k = 0; k < C::kLaneHeads; ++k) {
#pragma unroll
      for (int tb = 0; tb < kBlocks; ++tb) {
        y[k][tb][0] -= step[k];
        y[k][tb][1] -= step[k];
      }
    }
    weights();
  }
#pragma unroll
  for (int k = 0; k < C::kLaneHeads; ++k) {
    sum_[k] += sum[k];
    offset_sum_[k] += offset_sum[k];
  }

#pragma unroll
  for (int tb = 0; tb < kBlocks; ++tb) {
    uint32_t words[C::kWords];
    LoadSlot<C::kWords>(page + CodesBytes(C::kHeadDim), tb, slot, words);
    uint32_t b[kGroups][2];
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      b[n][0] = Transpose8x8(w[n][tb][0]);
      b[n][1] = Transpose8x8(w[n][tb][1]);
    }
#pragma unroll
    for (int s = 0; s < C::kSteps; ++s) {
      uint32_t a[4];
      CodeOperand<C::kWords>(words, s, a);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) MmaFp16(out_[n][s], a, b[n][0], b[n][1]);
    }
  }
}

}  // namespace oscarkv::kernels::cuda
