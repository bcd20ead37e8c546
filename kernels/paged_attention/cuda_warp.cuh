// What one warp does in paged decode attention: streams its share of a segment (tiles of bf16
// blocks, then 2-bit pages) through its own ring in shared memory and keeps an online softmax.
//
// Tokens (for QK) and channels (for PV) are the 16 rows of a matrix product, query heads its 8
// columns. The codes of a page are operands as they are, only masked; a token's scale and offset
// are applied to its score and to its softmax weight:
//   score = scale_t <q, codes_t> + offset_t sum(q)     out = sum_t (p_t scale_t) codes_t + p_t
//   offset_t
//
// QK multiplies bytes, exactly: `w & (0x03030303 << 2p)` holds four codes times 4^p, and q is an
// integer of 16 bits in two digits (relative to the largest |q| of the group; sum(q) is of the same
// integers, so that their error multiplies K's values and not its codes). Queries so large that 16
// bits would show in the weights (kCoarseLimit) get a third digit and a second pass.
//
// PV multiplies fp16, since weights span many powers of two: the two codes that `w & (0x00030003 <<
// 2p)` leaves are fp16 subnormals code * 4^p * 2^-24, which tensor cores take at full speed. 4^-p
// is folded into the output per channel.
//
// With up to 4 heads, columns 2j and 2j+1 are the high and the low part of head j, of q and of
// p * scale; with up to 8, q's digits are two products and p * scale is rounded to 11 bits. Tensor
// cores truncate their sums, which shows as a bias after some dozens of pages: every kFlushPages
// pages the sums are added to rounded fp32 sums in shared memory.
//
// The maximum m of the softmax is lazy. Any m is right as long as nothing leaves its range, so a
// warp keeps m until a weight p_t scale_t overflows fp16 (or p grows beyond 2^60, for pages whose
// scales are tiny) and only then finds a new m, for which the largest weight is 2^7.
#pragma once

#include "kernels/cuda_primitives.cuh"
#include "kernels/paged_attention/cuda_plan.cuh"
#include "kernels/paged_attention/op.h"

namespace oscarkv::kernels::cuda {

// Largest |q| scale log2(e) for which two digits do: scores are then off by 1e-4 or so times K's
// root mean square (in units of log2).
inline constexpr float kCoarseLimit = 2;

// kSplit: at most 4 heads, in high and low columns. Otherwise at most 8 heads per column group.
// kOffsets: pages have offset planes.
template <int kHeadDim_, int kColumnGroups_, bool kSplit_, bool kOffsets_>
struct Config {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kColumnGroups = kColumnGroups_;
  static constexpr bool kSplit = kSplit_, kOffsets = kOffsets_;
  static_assert(!kSplit || kColumnGroups == 1);

  static constexpr int kHeads = kSplit ? 4 : 8 * kColumnGroups;
  static constexpr int kLaneHeads = kSplit ? 1 : 2 * kColumnGroups;  // heads of one lane's columns
  static constexpr int kSteps = kHeadDim / 16;  // products over channels in QK; row blocks in PV
  // Products per position in QK of pages: without and with the third digit of q.
  static constexpr int kDigitSets = kSplit ? 1 : 2, kAllDigitSets = kDigitSets + 1;
  static constexpr int kWords = kHeadDim / 32;  // words of a slot
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = 2;
  static constexpr int kBlocksPerSm = kColumnGroups == 1 ? 2 : 1;
  static constexpr int kPageBytes = static_cast<int>(PageHeadBytes(kHeadDim, kOffsets));
  static constexpr int kTileBytes = 2 * kTileTokens * kHeadDim;  // of K or of V
  static constexpr int kStageBytes = kPageBytes;
  static_assert(kTileBytes <= kStageBytes);
  static constexpr int kFlushPages = 8;
  // A lane's output sums, in vectors of 4: [kSteps / 2] (two row blocks x two rows) when split,
  // else [kColumnGroups][kSteps] (two rows x two heads).
  static constexpr int kVectors = kSplit ? kSteps / 2 : kColumnGroups * kSteps;
  static constexpr int kElements = 32 * kVectors;  // of a block, in float4
};

// Column operands of q, two steps to a vector: operand i of lane is word i % 4 of [i / 4][lane].
template <class C>
using QueryOperands = uint4[C::kColumnGroups][C::kSteps / 2][32];

template <class C>
struct __align__(128) SharedMemory {
  uint8_t ring[C::kWarps][C::kStages][C::kStageBytes];
  float4 sums[C::kWarps][C::kElements];
  QueryOperands<C> tile_query, tile_query_low;
  uint32_t page_query[C::kAllDigitSets][C::kColumnGroups][C::kSteps][32];  // word of step, lane
  float query_sums[8 * C::kColumnGroups][C::kWarps];  // of columns, over each warp's operands
  float max[C::kWarps][C::kHeads];                    // while merging: factors of the warps' sums
  float sum[C::kWarps][C::kHeads];                    // while merging: [0] the block's
  uint64_t barriers[C::kWarps][C::kStages];
  int is_last;
};

// A block's part of one (sequence, kv head).
struct Segment {
  PlanSequence sequence;
  PlanLine line;
  int sequence_index, head;
  int tile_begin, tile_end, page_begin, page_end;
};

// Lane 4g+j; the head of column `column` (g's) or of this lane's accumulators.
struct Lane {
  int g, j;
  __device__ Lane() : g((threadIdx.x & 31) >> 2), j(threadIdx.x & 3) {}
};

// The ring of one warp. A step is one stage's content: K of a tile, V of a tile, or a page. Tiles
// are copied by cp.async, pages on sm_90 by the copy engine. Steps are issued kStages ahead of use.
template <class C>
class Ring {
 public:
  __device__ Ring(const PagedAttentionArgs& args, SharedMemory<C>* shared, int warp)
      : args_(args),
        ring_(SharedAddress(shared->ring[warp])),
        barriers_(SharedAddress(shared->barriers[warp])),
        warp_(warp),
        lane_(threadIdx.x & 31) {
#if OSCARKV_SM90
    policy_ = EvictFirstPolicy();
    if (lane_ < C::kStages) BarrierInit(barriers_ + 8 * lane_, 1);
    FenceAsyncCopies();
    __syncwarp();
#endif
  }

  // Takes this warp's share of a segment and issues its first steps. Every kWarps-th of the tiles
  // and pages together is this warp's.
  __device__ void Open(const Segment& segment) {
    const int tiles = segment.tile_end - segment.tile_begin;
    const int pages = segment.page_end - segment.page_begin;
    own_tiles_ = Share(tiles);
    own_pages_ = Share(tiles + pages) - own_tiles_;
    first_tile_ = segment.tile_begin + warp_;
    const int first_page = segment.page_begin + warp_ + own_tiles_ * C::kWarps - tiles;
    bf16_ids_ = args_.bf16_ids + segment.sequence.bf16_begin;
    page_ids_ = args_.page_ids + segment.sequence.page_begin + first_page;
    bf16_tokens_ = segment.sequence.bf16_tokens;
    head_ = segment.head;
    stage_ = 0;
    step_ = 0;
    int ids[C::kStages];
#pragma unroll
    for (int s = 0; s < C::kStages; ++s) ids[s] = IdOf(s);
#if OSCARKV_SM90
    FenceAsyncCopies();
    __syncwarp();
#endif
#pragma unroll
    for (int s = 0; s < C::kStages; ++s) Issue(s, s, ids[s]);
    next_id_ = IdOf(C::kStages);
  }

  __device__ int own_tiles() const {
    return own_tiles_;
  }
  __device__ int own_pages() const {
    return own_pages_;
  }
  __device__ int TileTokens(int i) const {  // of this warp's tile i
    return min(kTileTokens, bf16_tokens_ - kTileTokens * (first_tile_ + C::kWarps * i));
  }

  // Tiles first: waits for the current step; its bytes, as an address in shared memory.
  __device__ uint32_t WaitTile() {
#if OSCARKV_SM90
    if (step_ + C::kStages <= 2 * own_tiles_) {
      CopyAsyncWait<C::kStages - 1>();
    } else {
      CopyAsyncWait<0>();
    }
#else
    CopyAsyncWait<C::kStages - 1>();
#endif
    __syncwarp();
    return ring_ + stage_ * C::kStageBytes;
  }
  // Every lane has read the current step: its stage gets the step kStages further on.
  __device__ void ReleaseTile() {
#if OSCARKV_SM90
    FenceAsyncCopies();
#endif
    __syncwarp();
    Issue(stage_, step_ + C::kStages, next_id_);
    ++step_;
    next_id_ = IdOf(step_ + C::kStages);
    NextStage();
  }

  // Then pages, after one call of StartPages.
  __device__ void StartPages() {
    unissued_pages_ = own_pages_ - C::kStages;
    page_ids_ += (C::kStages + 1) * C::kWarps;
  }
  __device__ uint32_t WaitPage() {
#if OSCARKV_SM90
    BarrierWait(barriers_ + 8 * stage_, parity_ >> stage_ & 1);
    parity_ ^= 1u << stage_;
#else
    CopyAsyncWait<C::kStages - 1>();
    __syncwarp();
#endif
    return ring_ + stage_ * C::kStageBytes;
  }
  __device__ void ReleasePage() {
    __syncwarp();
    if (unissued_pages_ > 0) IssuePage(stage_, next_id_);
#if !OSCARKV_SM90
    CopyAsyncCommit();
#endif
    if (--unissued_pages_ > 0) next_id_ = *page_ids_;
    page_ids_ += C::kWarps;
    NextStage();
  }

 private:
  __device__ int Share(int n) const {
    return (n - warp_ + C::kWarps - 1) / C::kWarps;
  }

  // Id of the step's block or page.
  __device__ int IdOf(int step) const {
    const int page = step - 2 * own_tiles_;
    if (page >= own_pages_) return 0;
    if (page >= 0) return page_ids_[page * C::kWarps];
    return bf16_ids_[(first_tile_ + C::kWarps * (step >> 1)) / (kPageTokens / kTileTokens)];
  }

  __device__ void NextStage() {
    if (++stage_ == C::kStages) stage_ = 0;
  }

  __device__ void Issue(int stage, int step, int id) {
    const int page = step - 2 * own_tiles_;
    if (page < 0) {
      IssueTile(ring_ + stage * C::kStageBytes, step, id);
    } else if (page < own_pages_) {
      IssuePage(stage, id);
    }
#if !OSCARKV_SM90
    CopyAsyncCommit();
#endif
  }

  __device__ void IssuePage(int stage, int id) {
    const uint32_t to = ring_ + stage * C::kStageBytes;
    const uint8_t* from = args_.page_pool + id * args_.page_stride + head_ * C::kPageBytes;
#if OSCARKV_SM90
    if (lane_ == 0) CopyBulk(to, from, C::kPageBytes, barriers_ + 8 * stage, policy_);
#else
#pragma unroll
    for (int i = 16 * lane_; i < C::kPageBytes; i += 512) CopyAsync16(to + i, from + i, 16);
#endif
  }

  // 16 rows; chunk c (16 bytes) of row r stands at c ^ (r & 7), so that 8 rows' chunks c lie in
  // different banks. Rows behind the last token are zeroed: their weights are 0, and 0 * NaN is
  // NaN.
  __device__ void IssueTile(uint32_t to, int step, int id) {
    constexpr int kRowChunks = C::kHeadDim / 8;
    const int tile = first_tile_ + C::kWarps * (step >> 1), side = step & 1;
    const int tokens = bf16_tokens_ - kTileTokens * tile;
    const int row0 = kTileTokens * (tile % (kPageTokens / kTileTokens));
    const uint8_t* from =
        args_.bf16_pool + id * args_.bf16_stride +
        2 * C::kHeadDim * (int64_t{side * args_.num_kv_heads + head_} * kPageTokens + row0);
#pragma unroll
    for (int i = 0; i < C::kTileBytes / 512; ++i) {
      const int chunk = 32 * i + lane_, row = chunk / kRowChunks;
      CopyAsync16(to + 16 * (chunk ^ (row & 7)), from + 16 * chunk, row < tokens ? 16 : 0);
    }
#if OSCARKV_SM90
    CopyAsyncCommit();
#endif
  }

  const PagedAttentionArgs& args_;
  const uint32_t ring_, barriers_;
  const int warp_, lane_;
  int own_tiles_ = 0, own_pages_ = 0, first_tile_ = 0, bf16_tokens_ = 0, head_ = 0;
  const int32_t *bf16_ids_ = nullptr, *page_ids_ = nullptr;
  int stage_ = 0, step_ = 0, next_id_ = 0, unissued_pages_ = 0;
#if OSCARKV_SM90
  uint32_t parity_ = 0;
  uint64_t policy_;
#endif
};

}  // namespace oscarkv::kernels::cuda
