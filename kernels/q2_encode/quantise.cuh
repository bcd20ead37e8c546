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
//     threshold is the bf16 at or below it or one of the next two, and testing two finds it.
// A program that walked all s and o given by a generator found no exception in 17 million rows, and
// the tests compare bytes. Where the clip moves values, a threshold that the lowest (clipped) value
// reaches is reached by all, and one that the highest does not reach, by none.
#pragma once

#include "kernels/q2_encode/warp_ops.cuh"

namespace oscarkv::kernels::cuda {

// bf16 values (as fp32 bits) in order of size as integers, in steps of 0x10000; both zeros are 0.
inline __device__ int32_t OrderOf(float v) {
  const int32_t bits = __float_as_int(v);
  return bits < 0 ? static_cast<int32_t>(0x80000000u - static_cast<uint32_t>(bits)) : bits;
}
inline __device__ float ValueOf(int32_t order) {
  return __uint_as_float(order < 0 ? 0x80000000u - static_cast<uint32_t>(order) : order);
}

struct RowScale {
  float scale, offset;  // fp16 values
  bool clamped;         // one of them left fp16's range
};

// From the row's smallest and largest after the clip. lo must not be -0.
inline __device__ RowScale ScaleOf(float lo, float hi) {
  constexpr float kThird = 1.0f / 3, kFp16Max = 65504.0f, kFp16Limit = 65520.0f;
  // x / 3 correctly rounded: an estimate and one step of its exact remainder. Beyond 4e5 only
  // "too large" matters.
  const float range = fminf(fmaxf(hi - lo, 1e-8f), 4e5f);
  const float estimate = range * kThird;
  const float step = fmaf(fmaf(-3.0f, estimate, range), kThird, estimate);
  RowScale row;
  row.clamped = step >= kFp16Limit || fabsf(lo) >= kFp16Limit;
  row.scale = __half2float(__float2half_rn(fminf(step, kFp16Max)));
  row.offset = __half2float(__float2half_rn(fmaxf(fminf(lo, kFp16Max), -kFp16Max)));
  return row;
}

// Threshold i (1..3) of a row, as fp32 that is bf16.
inline __device__ float CodeThreshold(int i, const RowScale& row, float lo, float hi) {
  float d = (static_cast<float>(i) - 0.5f) * row.scale;
  const int32_t fraction = __float_as_int(row.scale) & 0x7fffff;
  if (i == 1 && (fraction == 0 || fraction > 0x2aaaaa)) d = __int_as_float(__float_as_int(d) - 1);
  const float half_gap = 0.5f * (d - __int_as_float(__float_as_int(d) - 1));
  const float bound = (row.offset + d) - half_gap;
  const auto reaches = [&](float y) { return y - row.offset >= d; };
  int32_t order = OrderOf(bound) & static_cast<int32_t>(0xffff0000);
  if (!reaches(ValueOf(order))) {
    order += 0x10000;
    if (!reaches(ValueOf(order))) order += 0x10000;
  }
  if (row.scale == 0 || !reaches(hi)) return INFINITY;  // nobody
  return reaches(lo) ? -INFINITY : ValueOf(order);
}

// Mixes two masks of codes, halves of ones or zeros: bits 1 and 0 of a code for each half.
inline __device__ uint32_t CodeBits(uint32_t bit1, uint32_t bit0) {
  return (bit1 & 0xaaaaaaaau) | (bit0 & 0x55555555u);
}

}  // namespace oscarkv::kernels::cuda
