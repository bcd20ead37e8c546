#include "kernels/prefill_attention/softmax.h"

#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/prefill_attention/softmax.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// Stores the weight in the operand's type and returns it as stored.
template <class D, class V>
HWY_INLINE V StoreRounded(D d, V v, float* to) {
  hn::StoreU(v, d, to);
  return v;
}
template <class D, class V>
HWY_INLINE V StoreRounded(D d, V v, Bf16* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  // Positive and finite: plain round to nearest even.
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto top = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
  hn::StoreU(hn::DemoteTo(hn::Rebind<uint16_t, D>(), hn::BitCast(di, top)),
             hn::Rebind<uint16_t, D>(), to);
  return hn::BitCast(d, hn::ShiftLeft<16>(top));
}

float MaxOf(const float* x, int n) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float max = -std::numeric_limits<float>::infinity();
  int i = 0;
  if (n >= lanes) {
    auto m0 = hn::LoadU(d, x), m1 = m0;
    for (i = lanes; i + 2 * lanes <= n; i += 2 * lanes) {
      m0 = hn::Max(m0, hn::LoadU(d, x + i));
      m1 = hn::Max(m1, hn::LoadU(d, x + i + lanes));
    }
    for (; i + lanes <= n; i += lanes) m0 = hn::Max(m0, hn::LoadU(d, x + i));
    max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(m0, m1)));
  }
  for (; i < n; ++i) max = std::max(max, x[i]);
  return max;
}

template <typename T>
float Step(const float* scores, int valid, int n, float scale, T* weights, SoftmaxState* state) {
  // With a negative scale the largest product belongs to the smallest score; nobody uses one, and
  // it would only cost precision.
  const float max = std::max(state->max, MaxOf(scores, valid) * scale);
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0;
  const auto weight = [=](auto tag, int i) HWY_ATTR {
    return StoreRounded(
        tag,
        Exp2(tag, hn::MulSub(hn::LoadU(tag, scores + i), hn::Set(tag, scale), hn::Set(tag, max))),
        weights + i);
  };
  int i = 0;
  for (; i + 2 * lanes <= valid; i += 2 * lanes) {
    s0 = hn::Add(s0, weight(d, i));
    s1 = hn::Add(s1, weight(d, i + lanes));
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
  for (; i < valid; ++i) sum += hn::GetLane(weight(one, i));
  std::memset(weights + valid, 0, (n - valid) * sizeof(T));
  const float factor = std::exp2(state->max - max);  // 0 at the first step
  state->max = max;
  state->sum = state->sum * factor + sum;
  return factor;
}

float StepFloat(const float* scores, int valid, int n, float scale, float* weights,
                SoftmaxState* state) {
  return Step(scores, valid, n, scale, weights, state);
}
float StepBf16(const float* scores, int valid, int n, float scale, Bf16* weights,
               SoftmaxState* state) {
  return Step(scores, valid, n, scale, weights, state);
}

void Scale(float* x, int64_t n, float factor) {
  ForVectors(n, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(StepFloat);
HWY_EXPORT(StepBf16);
HWY_EXPORT(Scale);

float SoftmaxStep(const float* scores, int valid, int n, float scale_log2, KvType type,
                  void* weights, SoftmaxState* state) {
  if (type == KvType::kBf16) {
    return HWY_DYNAMIC_DISPATCH(StepBf16)(scores, valid, n, scale_log2, static_cast<Bf16*>(weights),
                                          state);
  }
  return HWY_DYNAMIC_DISPATCH(StepFloat)(scores, valid, n, scale_log2, static_cast<float*>(weights),
                                         state);
}

void ScaleRow(float* x, int64_t n, float factor) {
  HWY_DYNAMIC_DISPATCH(Scale)(x, n, factor);
}

}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
