// Encoding of 64 rows of one kv head into one side (K or V) of a Q2P64 page-head, and back.
//
// Row by row: y = x * M (fp32, M row-major [d, d]; none: y = x), y rounded to bf16 - the bf16
// window and the codes come from the same numbers -, threshold = ascending sorted |y| at index
// int(clip_ratio * d) (ratio outside (0, 1): no clip), y clamped to
// +-threshold, lo = min y, scale = fp16(max(max y - lo, 1e-8) / 3), offset = fp16(lo),
// code = clamp(floor((y - offset) / scale + 0.5), 0, 3) with the rounded pair (scale == 0: code 0).
// Source: OSCAR's prefill writer (clip, asymmetric min-max, round half up), with (scale, offset) in
// the place of (scale, zero).
//
// The CPU backend gives the same bytes as the reference when `transform` is null; with a transform
// the products are summed in another order, so that a code may differ where y lies within rounding
// of a tie.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels {

struct EncodeArgs {
  int head_dim = 0;  // 64 or 128
  Side side = Side::kKey;
  const Bf16* rows = nullptr;  // [64, head_dim], rows row_stride elements apart
  int64_t row_stride = 0;
  const float* transform = nullptr;  // [head_dim, head_dim] row-major, or null
  float clip_ratio = 0;
  Bf16* rotated = nullptr;  // out, [64, head_dim] dense: y; or null
  // Out: this side's codes and its two planes; the other side's bytes stay.
  uint8_t* page_head = nullptr;
};

struct EncodeStats {
  uint64_t rows = 0;
  uint64_t clamped_fp16 = 0;  // rows whose scale or offset left fp16's range and was clamped to it
};

// Adds to *stats (may be null). kNonFinite: a row holds Inf or NaN; the page-head is then
// unspecified.
KernelStatus EncodePageHead(Backend backend, const EncodeArgs& args, EncodeStats* stats);

// All heads of one layer of a block: bf16 [K,V][kv_head][64][d] -> page layer
// [kv_head][PageHeadBytes]. No transform: the rows are already rotated. clip ratios: [K, V].
// kUnsupported: a shape whose pages have no offsets.
KernelStatus EncodeBlockLayer(Backend backend, const KvShape& shape, const Bf16* block_layer,
                              const float clip_ratio[2], uint8_t* page_layer, EncodeStats* stats);

// One side of a page-head to rows [64, head_dim] of fp32, exactly code * scale + offset in fp32
// (one fused rounding).
// `offsets`: the page-head has offset planes.
void DecodePageHead(Backend backend, int head_dim, Side side, const uint8_t* page_head, float* rows,
                    bool offsets = true);
// The same, rounded to bf16, rows row_stride elements apart: the history copies of prefill
// attention.
void DecodePageHeadBf16(Backend backend, int head_dim, Side side, const uint8_t* page_head,
                        Bf16* rows, int64_t row_stride, bool offsets = true);

}  // namespace oscarkv::kernels
