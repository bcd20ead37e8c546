// Dot products of bytes, compiled once per instruction set.
#if defined(OSCARKV_KERNELS_PAGED_ATTENTION_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_PAGED_ATTENTION_DOT_INL_H_
#undef OSCARKV_KERNELS_PAGED_ATTENTION_DOT_INL_H_
#else
#define OSCARKV_KERNELS_PAGED_ATTENTION_DOT_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

// Highway 1.0.3 looks for AVX512_VNNI in the CPU but asks the compiler for AVX_VNNI, another
// extension.
#if HWY_TARGET == HWY_AVX3_DL
#undef HWY_TARGET_STR
#define HWY_TARGET_STR \
  HWY_TARGET_STR_AVX3  \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg,avx512vpopcntdq,avx512vnni"
#endif

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using BytesTag = hn::ScalableTag<uint8_t>;
using IntsTag = hn::Repartition<int32_t, BytesTag>;
using FloatsTag = hn::Repartition<float, BytesTag>;
using Bytes = hn::Vec<BytesTag>;
using Ints = hn::Vec<IntsTag>;
using Floats = hn::Vec<FloatsTag>;
inline constexpr int kLanes = hn::MaxLanes(FloatsTag());  // 32-bit lanes
// 32 registers, or 16.
inline constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3;

// sums[i] + the products of the bytes 4 i .. 4 i + 3 of u, unsigned, and s, signed. Exact if two
// neighbouring products together fit int16, as they do where one factor is a 2-bit code.
HWY_INLINE Ints DotBytes(Ints sums, Bytes u, Bytes s) {
#if HWY_TARGET == HWY_AVX3_DL
  return Ints{_mm512_dpbusd_epi32(sums.raw, u.raw, s.raw)};
#elif HWY_TARGET == HWY_AVX3
  const auto pairs = _mm512_maddubs_epi16(u.raw, s.raw);
  return hn::Add(sums, Ints{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))});
#elif HWY_TARGET == HWY_AVX2
  const auto pairs = _mm256_maddubs_epi16(u.raw, s.raw);
  return hn::Add(sums, Ints{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  const auto pairs = _mm_maddubs_epi16(u.raw, s.raw);
  return hn::Add(sums, Ints{_mm_madd_epi16(pairs, _mm_set1_epi16(1))});
#else
  const hn::Repartition<uint16_t, BytesTag> du16;
  const hn::Repartition<int16_t, BytesTag> d16;
  const IntsTag d32;
  const auto u_odd = hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(du16, u)));
  const auto u_even = hn::BitCast(d16, hn::And(hn::BitCast(du16, u), hn::Set(du16, 0xff)));
  const auto s_odd = hn::ShiftRight<8>(hn::BitCast(d16, s));
  const auto s_even = hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(d16, s)));
  const auto pairs = hn::Add(hn::Mul(u_odd, s_odd), hn::Mul(u_even, s_even));
  const auto odd = hn::ShiftRight<16>(hn::BitCast(d32, pairs));
  const auto even = hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(d32, pairs)));
  return hn::Add(sums, hn::Add(odd, even));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
#endif  // HWY_SCALAR
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
