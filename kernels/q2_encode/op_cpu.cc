// SIMD encoding and decoding. Without a transform the bytes are the reference's: every step is
// either exact (bf16 to fp32, order statistics, minimum, maximum, code * scale) or one correctly
// rounded operation in the same order (subtract, divide, add).
#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/q2_encode/op_cpu.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <algorithm>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/convert.h"
#include "kernels/q2_encode/byte_order.h"
#include "kernels/q2_encode/op_backends.h"
#include "kernels/q2_encode/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// Packed bytes and metadata of 64 rows; false if one is not finite. `scales` and `offsets` in the
// order of tokens.
template <int kHeadDim>
bool QuantiseRows(const Bf16* rows, int64_t stride, float clip_ratio, uint8_t* bytes, Fp16* scales,
                  Fp16* offsets, uint64_t* clamped) {
  const bool clip = clip_ratio > 0 && clip_ratio < 1;
  const size_t kth = clip ? kHeadDim - static_cast<size_t>(clip_ratio * float{kHeadDim}) : 1;
  for (int token = 0; token < kPageTokens; ++token) {
    const Bf16* row = rows + token * stride;
    const Magnitudes<kHeadDim> magnitudes(row);
    if (!magnitudes.AllFinite()) return false;
    const float threshold = clip ? ToFloat(magnitudes.KthLargest(kth)) : INFINITY;
    float lo, hi;
    ClippedRange<kHeadDim>(row, threshold, &lo, &hi);
    lo += 0.0f;  // -0 becomes +0
    const float step = std::max(hi - lo, 1e-8f) / 3;
    scales[token] = FloatToFp16(step);
    offsets[token] = FloatToFp16(lo);
    *clamped += ExceedsFp16(step) || ExceedsFp16(lo);
    uint8_t* packed = bytes + token * (kHeadDim / 4);
    if (scales[token] == 0) {
      std::memset(packed, 0, kHeadDim / 4);
    } else {
      QuantiseRow<kHeadDim>(row, lo, hi, Fp16ToFloat(scales[token]), Fp16ToFloat(offsets[token]),
                            packed);
    }
  }
  return true;
}

bool Quantise(int head_dim, const Bf16* rows, int64_t stride, float clip_ratio, uint8_t* bytes,
              Fp16* scales, Fp16* offsets, uint64_t* clamped) {
  return (head_dim == 64 ? QuantiseRows<64> : QuantiseRows<128>)(rows, stride, clip_ratio, bytes,
                                                                 scales, offsets, clamped);
}

void Transform(const float* x, const float* matrix, int d, Bf16* y) {
  TransformRows(x, matrix, d, y);
}

void DequantiseToFloat(int head_dim, const uint8_t* bytes, float scale, float offset, float* row) {
  const auto store = [=](auto d, auto v, int channel) HWY_ATTR { hn::StoreU(v, d, row + channel); };
  if (head_dim == 64) return DequantiseRow<64>(bytes, scale, offset, store);
  DequantiseRow<128>(bytes, scale, offset, store);
}

void DequantiseToBf16(int head_dim, const uint8_t* bytes, float scale, float offset, Bf16* row) {
  const auto store = [=](auto d, auto v, int channel) HWY_ATTR {
    hn::StoreU(RoundToBf16(d, v), hn::Rebind<uint16_t, decltype(d)>(), row + channel);
  };
  if (head_dim == 64) return DequantiseRow<64>(bytes, scale, offset, store);
  DequantiseRow<128>(bytes, scale, offset, store);
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(Quantise);
HWY_EXPORT(Transform);
HWY_EXPORT(DequantiseToFloat);
HWY_EXPORT(DequantiseToBf16);

namespace cpu {
namespace {

constexpr int kMaxHeadDim = 128;
constexpr int kMaxCodeBytes = kPageTokens * kMaxHeadDim / 4;

// dequantise(token, packed bytes, scale, offset) for the 64 rows.
template <class Dequantise>
void DecodeRows(int head_dim, Side side, const uint8_t* page_head, bool offsets,
                const Dequantise& dequantise) {
  const uint8_t* codes = page_head + static_cast<size_t>(side) * CodesBytes(head_dim);
  const uint16_t* order = PackedByteOrder(side, head_dim);
  uint8_t bytes[kMaxCodeBytes];
  for (int i = 0; i < kPageTokens * head_dim / 4; ++i) bytes[i] = codes[order[i]];
  Fp16 planes[2 * kPageTokens];
  std::memcpy(planes, page_head + ScaleOffset(head_dim, side, offsets),
              sizeof(planes) / (offsets ? 1 : 2));
  for (int token = 0; token < kPageTokens; ++token) {
    const int at = MetaIndex(token);
    const float scale = Fp16ToFloat(planes[at]);
    dequantise(token, bytes + token * head_dim / 4, scale,
               offsets ? Fp16ToFloat(planes[kPageTokens + at]) : kCentredOffset * scale);
  }
}

}  // namespace

KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats) {
  const int d = args.head_dim;
  const Bf16* rows = args.rows;
  int64_t stride = args.row_stride;
  Bf16 transformed[kPageTokens * kMaxHeadDim];
  if (args.transform != nullptr) {
    float x[kPageTokens * kMaxHeadDim];
    for (int token = 0; token < kPageTokens; ++token)
      ConvertToFloat(rows + token * stride, d, x + token * d);
    HWY_DYNAMIC_DISPATCH(Transform)(x, args.transform, d, transformed);
    rows = transformed;
    stride = d;
  }
  uint8_t bytes[kMaxCodeBytes];
  Fp16 scales[kPageTokens], offsets[kPageTokens], planes[2 * kPageTokens];
  uint64_t clamped = 0;
  if (!HWY_DYNAMIC_DISPATCH(Quantise)(d, rows, stride, args.clip_ratio, bytes, scales, offsets,
                                      &clamped)) {
    return KernelStatus::kNonFinite;
  }
  if (args.rotated != nullptr) {
    for (int token = 0; token < kPageTokens; ++token)
      std::copy_n(rows + token * stride, d, args.rotated + token * d);
  }
  uint8_t* codes = args.page_head + static_cast<size_t>(args.side) * CodesBytes(d);
  const uint16_t* order = PackedByteOrder(args.side, d);
  for (int i = 0; i < kPageTokens * d / 4; ++i) codes[order[i]] = bytes[i];
  for (int token = 0; token < kPageTokens; ++token) {
    planes[MetaIndex(token)] = scales[token];
    planes[kPageTokens + MetaIndex(token)] = offsets[token];
  }
  std::memcpy(args.page_head + ScaleOffset(d, args.side), planes, sizeof(planes));
  if (stats != nullptr) {
    stats->rows += kPageTokens;
    stats->clamped_fp16 += clamped;
  }
  return KernelStatus::kOk;
}

void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows, bool offsets) {
  const auto dequantise = HWY_DYNAMIC_DISPATCH(DequantiseToFloat);
  DecodeRows(head_dim, side, page_head, offsets,
             [&](int token, const uint8_t* bytes, float scale, float offset) {
               dequantise(head_dim, bytes, scale, offset, rows + token * head_dim);
             });
}

void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride, bool offsets) {
  const auto dequantise = HWY_DYNAMIC_DISPATCH(DequantiseToBf16);
  DecodeRows(head_dim, side, page_head, offsets,
             [&](int token, const uint8_t* bytes, float scale, float offset) {
               dequantise(head_dim, bytes, scale, offset, rows + token * row_stride);
             });
}

}  // namespace cpu
}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
