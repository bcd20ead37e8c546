#include "kernels/convert.h"

#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "hwy/highway.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

void ToBf16Array(const float* x, int64_t n, Bf16* y) {
  ForVectors(n, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(RoundToBf16(d, hn::LoadU(d, x + i)), hn::Rebind<uint16_t, decltype(d)>(), y + i);
  });
}

void ToFloatArray(const Bf16* x, int64_t n, float* y) {
  ForVectors(n, [=](auto d, int64_t i) HWY_ATTR { hn::StoreU(LoadBf16(d, x + i), d, y + i); });
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(ToBf16Array);
HWY_EXPORT(ToFloatArray);

void ConvertToBf16(const float* x, int64_t n, Bf16* y) {
  HWY_DYNAMIC_DISPATCH(ToBf16Array)(x, n, y);
}
void ConvertToFloat(const Bf16* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(ToFloatArray)(x, n, y);
}

}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
