// Building blocks of the SIMD code, compiled once per instruction set (Highway's per-target include
// guard).
#if defined(OSCARKV_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_SIMD_INL_H_
#undef OSCARKV_KERNELS_SIMD_INL_H_
#else
#define OSCARKV_KERNELS_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// f(d, i) over i = 0, N, 2N, ... with full vectors, then one lane at a time for the remainder.
template <class F>
HWY_INLINE void ForVectors(int64_t n, const F& f) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(d, i);
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) f(one, i);
}

// 2^x for x <= 127; below -126 the result is 2^-126 (callers add it to sums of at least 1). With n
// the integer nearest to x and f = x - n in [-1/2, 1/2]: a polynomial in f, interpolated at
// Chebyshev nodes, times 2^n by an addition to the exponent. Adding 1.5 * 2^23 rounds x and leaves
// n in the low bits. Relative error: degree 4 (results that are rounded to bf16) 3.5e-6, degree 6
// (fp32) 1.5e-7.
template <int kDegree, class D, class V>
HWY_INLINE V Exp2(D d, V x) {
  static_assert(kDegree == 4 || kDegree == 6);
  const hn::RebindToSigned<D> di;
  const V magic = hn::Set(d, 12582912.0f);
  x = hn::Max(x, hn::Set(d, -126.0f));
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  V y;
  if constexpr (kDegree == 4) {
    y = hn::MulAdd(hn::Set(d, 9.6663685e-3f), f, hn::Set(d, 5.5921976e-2f));
    y = hn::MulAdd(y, f, hn::Set(d, 2.4022349e-1f));
    y = hn::MulAdd(y, f, hn::Set(d, 6.9312105e-1f));
  } else {
    y = hn::MulAdd(hn::Set(d, 1.5461445e-4f), f, hn::Set(d, 1.3400428e-3f));
    y = hn::MulAdd(y, f, hn::Set(d, 9.6180567e-3f));
    y = hn::MulAdd(y, f, hn::Set(d, 5.5503272e-2f));
    y = hn::MulAdd(y, f, hn::Set(d, 2.4022651e-1f));
    y = hn::MulAdd(y, f, hn::Set(d, 6.9314721e-1f));
  }
  y = hn::MulAdd(y, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// fp32 to the bits of bf16, as ToBf16: round to nearest even, NaN stays NaN.
template <class D, class V>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> RoundToBf16(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto top =
      hn::ShiftRight<16>(hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded));
  return hn::DemoteTo(d16, hn::BitCast(di, top));
}

// The bits of bf16 to fp32, exact.
template <class D>
HWY_INLINE hn::Vec<D> LoadBf16(D d, const uint16_t* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, p))));
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
