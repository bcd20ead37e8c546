// The specification of the codes, one obvious step after the other.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/q2_encode/op_backends.h"

namespace oscarkv::kernels::ref {
namespace {

constexpr int kMaxHeadDim = 128;

CodePosition Position(Side side, int head_dim, int token, int channel) {
  return side == Side::kKey ? KeyPosition(head_dim, token, channel)
                            : ValuePosition(head_dim, token, channel);
}

// y = bf16(x M), the products summed in float64.
void TransformRow(const Bf16* x, const float* transform, int d, Bf16* y) {
  if (transform == nullptr) {
    std::copy_n(x, d, y);
    return;
  }
  for (int c = 0; c < d; ++c) {
    double sum = 0;
    for (int i = 0; i < d; ++i) sum += double{ToFloat(x[i])} * transform[i * d + c];
    y[c] = ToBf16(static_cast<float>(sum));
  }
}

// The clip threshold: the value at int(ratio * d) of the ascending |y|; Inf (no clip) for a ratio
// outside (0, 1).
float Threshold(const float* y, int d, float ratio) {
  if (!(ratio > 0 && ratio < 1)) return INFINITY;
  float magnitudes[kMaxHeadDim];
  for (int c = 0; c < d; ++c) magnitudes[c] = std::fabs(y[c]);
  std::sort(magnitudes, magnitudes + d);
  return magnitudes[static_cast<int>(ratio * static_cast<float>(d))];
}

struct QuantisedRow {
  uint8_t codes[kMaxHeadDim];
  Fp16 scale, offset;
  bool clamped;
};

QuantisedRow QuantiseRow(const float* y, int d, float ratio) {
  const float threshold = Threshold(y, d, ratio);
  float clipped[kMaxHeadDim];
  for (int c = 0; c < d; ++c) clipped[c] = std::clamp(y[c], -threshold, threshold);
  // + 0 makes -0 into +0: a row of mixed zeros has one encoding.
  const float lo = *std::min_element(clipped, clipped + d) + 0.0f;
  const float hi = *std::max_element(clipped, clipped + d);
  const float step = std::max(hi - lo, 1e-8f) / 3;
  QuantisedRow row;
  row.scale = FloatToFp16(step);
  row.offset = FloatToFp16(lo);
  row.clamped = ExceedsFp16(step) || ExceedsFp16(lo);
  const float scale = Fp16ToFloat(row.scale), offset = Fp16ToFloat(row.offset);
  for (int c = 0; c < d; ++c) {
    const float level = scale == 0 ? 0 : std::floor((clipped[c] - offset) / scale + 0.5f);
    row.codes[c] = static_cast<uint8_t>(std::clamp(level, 0.0f, 3.0f));
  }
  return row;
}

void StoreFp16(uint8_t* plane, int index, Fp16 value) {
  std::memcpy(plane + 2 * index, &value, 2);
}
float LoadFp16(const uint8_t* plane, int index) {
  Fp16 value;
  std::memcpy(&value, plane + 2 * index, 2);
  return Fp16ToFloat(value);
}

}  // namespace

KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats) {
  const int d = args.head_dim;
  const int side = static_cast<int>(args.side);
  uint8_t* codes = args.page_head + side * CodesBytes(d);
  uint8_t* scales = args.page_head + ScaleOffset(d, args.side);
  uint8_t* offsets = scales + 2 * kPageTokens;
  std::memset(codes, 0, CodesBytes(d));
  for (int token = 0; token < kPageTokens; ++token) {
    Bf16 rotated[kMaxHeadDim];
    float y[kMaxHeadDim];
    TransformRow(args.rows + token * args.row_stride, args.transform, d, rotated);
    for (int c = 0; c < d; ++c) {
      y[c] = ToFloat(rotated[c]);
      if (!std::isfinite(y[c])) return KernelStatus::kNonFinite;
    }
    if (args.rotated != nullptr) std::copy_n(rotated, d, args.rotated + token * d);
    const QuantisedRow row = QuantiseRow(y, d, args.clip_ratio);
    for (int c = 0; c < d; ++c) {
      const CodePosition at = Position(args.side, d, token, c);
      codes[4 * at.word + at.bit / 8] |= static_cast<uint8_t>(row.codes[c] << at.bit % 8);
    }
    StoreFp16(scales, MetaIndex(token), row.scale);
    StoreFp16(offsets, MetaIndex(token), row.offset);
    if (stats != nullptr) {
      ++stats->rows;
      stats->clamped_fp16 += row.clamped;
    }
  }
  return KernelStatus::kOk;
}

void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows, bool offsets) {
  const uint8_t* codes = page_head + static_cast<int>(side) * CodesBytes(head_dim);
  const uint8_t* scales = page_head + ScaleOffset(head_dim, side, offsets);
  for (int token = 0; token < kPageTokens; ++token) {
    const float scale = LoadFp16(scales, MetaIndex(token));
    const float offset =
        offsets ? LoadFp16(scales + 2 * kPageTokens, MetaIndex(token)) : kCentredOffset * scale;
    for (int c = 0; c < head_dim; ++c) {
      const CodePosition at = Position(side, head_dim, token, c);
      const int code = codes[4 * at.word + at.bit / 8] >> at.bit % 8 & 3;
      // code * scale is exact in fp32 (13 bits): one rounding, fused or not.
      rows[token * head_dim + c] = static_cast<float>(code) * scale + offset;
    }
  }
}

void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride, bool offsets) {
  float decoded[kPageTokens * kMaxHeadDim];
  DecodePageHead(head_dim, side, page_head, decoded, offsets);
  for (int token = 0; token < kPageTokens; ++token) {
    for (int c = 0; c < head_dim; ++c)
      rows[token * row_stride + c] = ToBf16(decoded[token * head_dim + c]);
  }
}

}  // namespace oscarkv::kernels::ref
