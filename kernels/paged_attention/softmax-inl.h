// The online softmax's state of a group of heads, compiled once per instruction set. Scores are
// base-2 logarithms.
#if defined(OSCARKV_KERNELS_PAGED_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_PAGED_ATTENTION_SOFTMAX_INL_H_
#undef OSCARKV_KERNELS_PAGED_ATTENTION_SOFTMAX_INL_H_
#else
#define OSCARKV_KERNELS_PAGED_ATTENTION_SOFTMAX_INL_H_
#endif

#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/layout.h"
#include "kernels/paged_attention/dot-inl.h"
#include "kernels/paged_attention/part.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// How many of the `left` heads go into one register block: 4, 2 or 1.
HWY_INLINE int HeadBlock(int left) {
  if (kManyRegisters && left >= 4) return 4;
  return left >= 2 ? 2 : 1;
}

// Sums are kept per lane until the end.
struct SoftmaxState {
  float max[kMaxGroup];
  alignas(64) float sums[kMaxGroup][kLanes];     // of the weights
  alignas(64) float offsets[kMaxGroup][kLanes];  // of weight * V offset, over pages
  alignas(64) float out[kMaxGroup][kMaxHeadDim];

  void Clear(int group) {
    for (int h = 0; h < group; ++h) max[h] = -INFINITY;
    std::memset(sums, 0, sizeof(sums[0]) * group);
    std::memset(offsets, 0, sizeof(offsets[0]) * group);
    std::memset(out, 0, sizeof(out[0]) * group);
  }

  // Makes `tile_max` the least maximum of head h and rescales what was summed under a smaller one.
  HWY_INLINE void RaiseMax(int h, float tile_max, int head_dim) {
    if (tile_max <= max[h]) return;
    const FloatsTag d;
    const Floats factor = hn::Set(d, std::exp2(max[h] - tile_max));
    max[h] = tile_max;
    hn::Store(hn::Mul(hn::Load(d, sums[h]), factor), d, sums[h]);
    hn::Store(hn::Mul(hn::Load(d, offsets[h]), factor), d, offsets[h]);
    for (int c = 0; c < head_dim; c += kLanes)
      hn::Store(hn::Mul(hn::Load(d, out[h] + c), factor), d, out[h] + c);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
#endif  // HWY_SCALAR
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
