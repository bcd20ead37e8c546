// Encoding of 64 rows with error feedback: profiles `shaped` and `shaped-sym`. The page is that of
// op.h, decoding too, without offset planes in `shaped-sym`; only the choice of codes differs.
//
// What an error n of a row costs is n^T W n, with W = L D L^T (L unit lower triangular). A row y of
// d values becomes levels q_j in {-1.5, -0.5, 0.5, 1.5}, a step and a middle:
//   1. Step and middle, affine: from the range of the row times 0.9, 0.75 and 0.62, three rounds of
//      (nearest levels, least squares); the smallest squared error wins; the step is widened by
//      `widen`, for feedback needs room. Symmetric: middle 0, step 0.996 times the root mean
//      square, widened.
//   2. x = (y - middle) / step. For j = d-1 .. 0: q_j = the level nearest to x_j + sum_{i>j} L_ij
//      e_i, e_j = x_j - q_j: the errors made so far are made good as far as the metric allows. Then
//      `sweeps` times, j = d-1 .. 0: q_j = the level nearest to x_j + sum_{i!=j} W_ij e_i / W_jj,
//      the best one while the others stay.
//   3. Least squares of x by q (affine: and 1) in the metric W; kept when the step changes by less
//      than a factor of 0.3 to 3 and the middle by at most 3 steps.
//   4. A least-squares approximation is too short: scale and offset are multiplied by
//      1 + gain (g - 1), g = <y, y>_W / <y^, y>_W within [0.8, 1.5].
// scale = fp16 of the step, offset = fp16 of the value of code 0; symmetric: -1.5 times the rounded
// scale, not stored.
//
// Everything is fp32 with a given order of operations (shaped_ref.cc), fused where the reference
// says fma: every backend gives the same bytes. Sums over i > j run downwards from d-1, sums over
// i < j upwards from 0, so that they can be taken in blocks of channels of any size.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/q2_encode/op.h"
#include "kernels/types.h"

namespace oscarkv::kernels {

inline constexpr int kMaxSweeps = 4;

// One side of one kv head, made once. All row-major fp32.
struct ShapedMetric {
  const float* feedback = nullptr;  // [d, d]: [i][j] = L_ij for i > j; 0 elsewhere
  const float* sweep = nullptr;     // [d, d]: [i][j] = W_ij / W_jj for i != j; 0 on the diagonal
  const float* weight = nullptr;    // [d]: W_jj
  const float* ones = nullptr;      // [d]: (W 1)_j
  float ones_norm = 0;              // 1^T W 1
};

struct ShapedArgs {
  int head_dim = 0;  // 64 or 128
  Side side = Side::kKey;
  const Bf16* rows = nullptr;  // [64, head_dim], rows row_stride elements apart: y
  int64_t row_stride = 0;
  ShapedMetric metric;
  float widen = 1.15f;           // > 0
  float gain = 1;                // 0..1
  int sweeps = 2;                // 0..kMaxSweeps
  bool symmetric = false;        // levels about zero; the page has no offset planes
  uint8_t* page_head = nullptr;  // out: this side's codes and its planes
};

// Adds to *stats (may be null); a row with a value beyond fp16's range is cut to it and counts as
// clamped. kNonFinite: a row holds Inf or NaN; the page-head is then unspecified.
KernelStatus EncodePageHeadShaped(Backend backend, const ShapedArgs& args, EncodeStats* stats);

}  // namespace oscarkv::kernels
