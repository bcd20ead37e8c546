// The steps of encoding and decoding rows, compiled once per instruction set.
#if defined(OSCARKV_KERNELS_Q2_ENCODE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_Q2_ENCODE_ROWS_INL_H_
#undef OSCARKV_KERNELS_Q2_ENCODE_ROWS_INL_H_
#else
#define OSCARKV_KERNELS_Q2_ENCODE_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/layout.h"
#include "kernels/simd-inl.h"
#include "kernels/types.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// y = bf16(x M) for 64 rows: x [64, d] fp32 dense, M [d, d], y [64, d] dense. Four rows by kVectors
// vectors of columns are kept in registers, so that an element of M is loaded once for four
// products and an element of x once for a whole column block.
HWY_INLINE void TransformRows(const float* x, const float* matrix, int d, Bf16* y) {
  const hn::ScalableTag<float> df;
  constexpr int kRows = 4;
  constexpr int kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;  // 32 registers, or 16
  const int lanes = static_cast<int>(hn::Lanes(df));
  for (int column = 0; column < d; column += kVectors * lanes) {
    for (int row = 0; row < kPageTokens; row += kRows) {
      hn::Vec<decltype(df)> sums[kRows][kVectors];
      for (auto& row_sums : sums) {
        for (auto& sum : row_sums) sum = hn::Zero(df);
      }
      for (int i = 0; i < d; ++i) {
        hn::Vec<decltype(df)> m[kVectors];
        for (int v = 0; v < kVectors; ++v)
          m[v] = hn::LoadU(df, matrix + i * d + column + v * lanes);
        for (int r = 0; r < kRows; ++r) {
          const auto factor = hn::Set(df, x[(row + r) * d + i]);
          for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, m[v], sums[r][v]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          Bf16* to = y + (row + r) * d + column + v * lanes;
          hn::StoreU(RoundToBf16(df, sums[r][v]), hn::Rebind<uint16_t, decltype(df)>(), to);
        }
      }
    }
  }
}

// |bf16| orders like its bits without the sign: order statistics and the test for Inf and NaN work
// on 15-bit integers.
template <int kHeadDim>
struct Magnitudes {
  using D = hn::CappedTag<int16_t, 64>;
  static constexpr int kVectors = kHeadDim / static_cast<int>(hn::MaxLanes(D()));
  hn::Vec<D> v[kVectors];

  HWY_INLINE explicit Magnitudes(const Bf16* row) {
    const D d;
    for (int i = 0; i < kVectors; ++i) {
      const auto bits = hn::LoadU(d, reinterpret_cast<const int16_t*>(row) + i * hn::Lanes(d));
      v[i] = hn::And(bits, hn::Set(d, 0x7fff));
    }
  }

  HWY_INLINE bool AllFinite() const {
    const D d;
    auto max = v[0];
    for (int i = 1; i < kVectors; ++i) max = hn::Max(max, v[i]);
    return hn::AllTrue(d, hn::Lt(max, hn::Set(d, 0x7f80)));
  }

  // The k-th largest, k >= 1: the largest t such that at least k values are >= t, bit by bit from
  // the top.
  HWY_INLINE Bf16 KthLargest(size_t k) const {
    const D d;
    int t = 0;
    for (int bit = 1 << 14; bit != 0; bit >>= 1) {
      const auto below = hn::Set(d, static_cast<int16_t>((t | bit) - 1));
      size_t count = 0;
      for (int i = 0; i < kVectors; ++i) count += hn::CountTrue(d, hn::Gt(v[i], below));
      t |= count >= k ? bit : 0;
    }
    return static_cast<Bf16>(t);
  }
};

// Smallest and largest of the row after the clip.
template <int kHeadDim>
HWY_INLINE void ClippedRange(const Bf16* row, float threshold, float* lo, float* hi) {
  const hn::ScalableTag<float> d;
  auto min = LoadBf16(d, row), max = min;
  for (int i = static_cast<int>(hn::Lanes(d)); i < kHeadDim; i += static_cast<int>(hn::Lanes(d))) {
    const auto y = LoadBf16(d, row + i);
    min = hn::Min(min, y);
    max = hn::Max(max, y);
  }
  // Both against both ends: the threshold may be smaller than every |y| of one sign.
  *lo = std::clamp(hn::GetLane(hn::MinOfLanes(d, min)), -threshold, threshold);
  *hi = std::clamp(hn::GetLane(hn::MaxOfLanes(d, max)), -threshold, threshold);
}

// Packed bytes (byte_order.h) of one row. `scale` must not be 0. A true division, as in the
// reference: its result decides ties.
template <int kHeadDim>
HWY_INLINE void QuantiseRow(const Bf16* row, float lo, float hi, float scale, float offset,
                            uint8_t* bytes) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto code = [=](int channel) HWY_ATTR {
    const auto y = hn::Min(hn::Max(LoadBf16(d, row + channel), hn::Set(d, lo)), hn::Set(d, hi));
    const auto level = hn::Div(hn::Sub(y, hn::Set(d, offset)), hn::Set(d, scale));
    const auto rounded = hn::Add(level, hn::Set(d, 0.5f));
    return hn::ConvertTo(di,
                         hn::Min(hn::Max(rounded, hn::Zero(d)), hn::Set(d, 3.0f)));  // truncates
  };
  for (int ch = 0; ch < kHeadDim / 64; ++ch) {
    for (int i = 0; i < 16; i += lanes) {
      const int channel = 64 * ch + i;
      const auto low = hn::Or(code(channel), hn::ShiftLeft<2>(code(channel + 16)));
      const auto high =
          hn::Or(hn::ShiftLeft<4>(code(channel + 32)), hn::ShiftLeft<6>(code(channel + 48)));
      hn::StoreU(hn::DemoteTo(hn::Rebind<uint8_t, decltype(d)>(), hn::Or(low, high)),
                 hn::Rebind<uint8_t, decltype(d)>(), bytes + 16 * ch + i);
    }
  }
}

// Values of one row from its packed bytes; store(d, v, channel) takes them. code * scale is exact:
// the addition rounds once.
template <int kHeadDim, class Store>
HWY_INLINE void DequantiseRow(const uint8_t* bytes, float scale, float offset, const Store& store) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto value = [=](auto codes) HWY_ATTR {
    const auto level = hn::ConvertTo(d, hn::And(codes, hn::Set(di, 3)));
    return hn::MulAdd(level, hn::Set(d, scale), hn::Set(d, offset));
  };
  for (int ch = 0; ch < kHeadDim / 64; ++ch) {
    for (int i = 0; i < 16; i += lanes) {
      const auto packed =
          hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, decltype(d)>(), bytes + 16 * ch + i));
      const int channel = 64 * ch + i;
      store(d, value(packed), channel);
      store(d, value(hn::ShiftRight<2>(packed)), channel + 16);
      store(d, value(hn::ShiftRight<4>(packed)), channel + 32);
      store(d, value(hn::ShiftRight<6>(packed)), channel + 48);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
