// From bf16 rows to codes, exactly as the reference divides and rounds, without a division per
// value.
//
// With scale s and offset o of a row, the code of y is clamp(floor((y - o) / s + 0.5), 0, 3), each
// step rounded to fp32. Every step is monotone in y, so the code is the number of thresholds T1 <=
// T2 <= T3 that y reaches; y is bf16, so the thresholds may be too, and a comparison handles two
// values. Working backwards through the roundings:
//   * RN(q + 0.5) >= i  <=>  q >= 1/2 - 2^-25 (i = 1), 1.5 (i = 2), 2.5 (i = 3).
//   * RN(x / s) >= that <=>  x >= d_i, with s of 11 bits: d_2 = 1.5 s, d_3 = 2.5 s; d_1 = 0.5 s, or
//   the
//     fp32 below it if s = 2^n or s > 4/3 2^n.
//   * RN(y - o) >= d_i  <=>  y >= o + d_i - half the gap below d_i, a tie going by d_i's last bit.
//   In
//     fp32 that sum is exact where y is small against o (and bf16 therefore fine against the
//     rounding of y - o); elsewhere it is off by much less than a unit of bf16. Either way the
//     threshold is the bf16 nearest to it or the next one above, and a test tells which.
// A program that compared this with the divisions found no exception in 58 million (s, o, i) of all
// magnitudes, and the tests compare bytes. Where the clip moves values, a threshold that the lowest
// (clipped) value reaches is reached by all, and one that the highest does not reach, by none.
#pragma once

#include "kernels/q2_encode/warp_ops.cuh"

namespace oscarkv::kernels::cuda {

struct RowScale {
  float scale, offset;  // fp16 values
  bool clamped;         // one of them left fp16's range
};

// From the row's smallest and largest after the clip. lo must not be -0.
inline __device__ RowScale ScaleOf(float lo, float hi) {
  constexpr float kThird = 1.0f / 3, kFp16Max = 65504.0f, kFp16Limit = 65520.0f;
  // x / 3 correctly rounded: an estimate and one step of its exact remainder.
  const float range = fminf(fmaxf(hi - lo, 1e-8f), 3 * kFp16Limit);
  const float estimate = range * kThird;
  const float step = fmaf(fmaf(-3.0f, estimate, range), kThird, estimate);
  RowScale row;
  row.clamped = step >= kFp16Limit || fabsf(lo) >= kFp16Limit;
  row.scale = __half2float(__float2half_rn(fminf(step, kFp16Max)));
  row.offset = __half2float(__float2half_rn(fmaxf(fminf(lo, kFp16Max), -kFp16Max)));
  return row;
}

// Threshold i (1..3) of a row, as fp32 that is bf16; level = i - 0.5.
inline __device__ float CodeThreshold(float level, const RowScale& row, float lo, float hi) {
  float d = level * row.scale;
  const uint32_t fraction = __float_as_uint(row.scale) << 9;
  if (level < 1 && (fraction == 0 || fraction > 0x55555400u))
    d = __int_as_float(__float_as_int(d) - 1);
  const float half_gap = 0.5f * (d - __int_as_float(__float_as_int(d) - 1));
  const auto reaches = [&](float y) { return y - row.offset >= d; };
  const uint32_t nearest = PackBf16(0, (row.offset + d) - half_gap);  // in the upper half
  const uint32_t above = nearest + ((static_cast<int32_t>(nearest) >> 31 & 0xfffe0000u) + 0x10000u);
  float threshold = __uint_as_float(reaches(__uint_as_float(nearest)) ? nearest : above);
  if (reaches(lo)) threshold = -INFINITY;                    // everybody
  if (row.scale == 0 || !reaches(hi)) threshold = INFINITY;  // nobody
  return threshold;
}

}  // namespace oscarkv::kernels::cuda
