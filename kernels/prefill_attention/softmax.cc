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

// 2^(scale * score - max). FloatWeights and Bf16Weights store them and add them up as stored: two
// vectors at a time, or one score of the remainder.
template <int kDegree, class D>
HWY_INLINE hn::Vec<D> Weight(D d, const float* scores, float scale, float max) {
  const auto x = hn::MulSub(hn::LoadU(d, scores), hn::Set(d, scale), hn::Set(d, max));
  return Exp2<kDegree>(d, x);
}

struct FloatWeights {
  template <class D, class V>
  static HWY_INLINE void Add2(D d, const float* scores, float scale, float max, float* to, V* s0,
                              V* s1) {
    const auto w0 = Weight<6>(d, scores, scale, max);
    const auto w1 = Weight<6>(d, scores + hn::Lanes(d), scale, max);
    hn::StoreU(w0, d, to);
    hn::StoreU(w1, d, to + hn::Lanes(d));
    *s0 = hn::Add(*s0, w0);
    *s1 = hn::Add(*s1, w1);
  }
  static HWY_INLINE float One(const float* score, float scale, float max, float* to) {
    const hn::CappedTag<float, 1> d;
    *to = hn::GetLane(Weight<6>(d, score, scale, max));
    return *to;
  }
};

// Rounded to nearest, ties away from zero: one addition, and the upper halves of two vectors are
// the stored weights.
struct Bf16Weights {
  template <class D, class V>
  static HWY_INLINE void Add2(D d, const float* scores, float scale, float max, Bf16* to, V* s0,
                              V* s1) {
    const hn::RebindToUnsigned<D> du;
    const auto half = hn::Set(du, 0x8000u), top = hn::Set(du, 0xffff0000u);
    const auto w0 = hn::Add(hn::BitCast(du, Weight<4>(d, scores, scale, max)), half);
    const auto w1 = hn::Add(hn::BitCast(du, Weight<4>(d, scores + hn::Lanes(d), scale, max)), half);
#if HWY_TARGET == HWY_SCALAR  // vectors of one lane have no halves
    to[0] = static_cast<Bf16>(hn::GetLane(w0) >> 16);
    to[1] = static_cast<Bf16>(hn::GetLane(w1) >> 16);
#else
    const hn::Repartition<uint16_t, D> d16;
    hn::StoreU(hn::ConcatOdd(d16, hn::BitCast(d16, w1), hn::BitCast(d16, w0)), d16, to);
#endif
    *s0 = hn::Add(*s0, hn::BitCast(d, hn::And(w0, top)));
    *s1 = hn::Add(*s1, hn::BitCast(d, hn::And(w1, top)));
  }
  static HWY_INLINE float One(const float* score, float scale, float max, Bf16* to) {
    const hn::CappedTag<float, 1> d;
    const hn::RebindToUnsigned<decltype(d)> du;
    const uint32_t bits = hn::GetLane(hn::BitCast(du, Weight<4>(d, score, scale, max)));
    *to = static_cast<Bf16>((bits + 0x8000) >> 16);
    return ToFloat(*to);
  }
};

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

template <class Weights, typename T>
float Step(const float* scores, int valid, int n, float scale, T* weights, SoftmaxState* state) {
  const float max = std::max(state->max, MaxOf(scores, valid) * scale);
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0;
  int i = 0;
  for (; i + 2 * lanes <= valid; i += 2 * lanes) {
    Weights::Add2(d, scores + i, scale, max, weights + i, &s0, &s1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
  for (; i < valid; ++i) sum += Weights::One(scores + i, scale, max, weights + i);
  std::memset(weights + valid, 0, (n - valid) * sizeof(T));
  const float factor = std::exp2(state->max - max);  // 0 at the first step
  state->max = max;
  state->sum = state->sum * factor + sum;
  return factor;
}

float StepFloat(const float* scores, int valid, int n, float scale, float* weights,
                SoftmaxState* state) {
  return Step<FloatWeights>(scores, valid, n, scale, weights, state);
}
float StepBf16(const float* scores, int valid, int n, float scale, Bf16* weights,
               SoftmaxState* state) {
  return Step<Bf16Weights>(scores, valid, n, scale, weights, state);
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
