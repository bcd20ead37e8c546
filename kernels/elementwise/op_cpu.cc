// Highway code, compiled once per instruction set and chosen at run time.
#include "kernels/elementwise/op_backends.h"

#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise/op_cpu.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <cmath>

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// Four running sums: the additions of one would wait for each other.
float SumOfSquares(const float* x, int64_t n) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto v0 = hn::LoadU(d, x + i), v1 = hn::LoadU(d, x + i + lanes);
    const auto v2 = hn::LoadU(d, x + i + 2 * lanes), v3 = hn::LoadU(d, x + i + 3 * lanes);
    s0 = hn::MulAdd(v0, v0, s0);
    s1 = hn::MulAdd(v1, v1, s1);
    s2 = hn::MulAdd(v2, v2, s2);
    s3 = hn::MulAdd(v3, v3, s3);
  }
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    s0 = hn::MulAdd(v, v, s0);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void RmsNorm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* y) {
  for (int64_t i = 0; i < n; ++i, x += dim, y += dim) {
    const float factor = 1 / std::sqrt(SumOfSquares(x, dim) / static_cast<float>(dim) + eps);
    ForVectors(dim, [=](auto d, int64_t c) HWY_ATTR {
      const auto scaled = hn::Mul(hn::LoadU(d, x + c), hn::Set(d, factor));
      hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + c)), d, y + c);
    });
  }
}

// silu(g) = g / (1 + 2^(-g log2 e)). Cut at -88, where it is -5e-37: the power stays finite. The
// order of Max's operands lets NaN pass on x86.
void SiluGate(const float* gate, const float* up, int64_t n, float* y) {
  ForVectors(n, [=](auto d, int64_t i) HWY_ATTR {
    const auto least = hn::Set(d, -88.0f), x = hn::LoadU(d, gate + i);
    const auto g = hn::IfThenElse(hn::Lt(x, least), least, x);
    const auto e = Exp2<6>(d, hn::Mul(g, hn::Set(d, -1.44269504f)));
    const auto silu = hn::Div(g, hn::Add(e, hn::Set(d, 1.0f)));
    hn::StoreU(hn::Mul(silu, hn::LoadU(d, up + i)), d, y + i);
  });
}

void AddInPlace(float* x, const float* y, int64_t n) {
  ForVectors(n, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  });
}

void Rope(float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table) {
  for (int64_t i = 0; i < n; ++i) {
    const float* cos = cos_table + positions[i] * half_dim;
    const float* sin = sin_table + positions[i] * half_dim;
    for (int64_t h = 0; h < heads; ++h, x += head_dim) {
      ForVectors(half_dim, [=](auto d, int64_t c) HWY_ATTR {
        const auto a = hn::LoadU(d, x + c), b = hn::LoadU(d, x + half_dim + c);
        const auto co = hn::LoadU(d, cos + c), si = hn::LoadU(d, sin + c);
        hn::StoreU(hn::NegMulAdd(b, si, hn::Mul(a, co)), d, x + c);
        hn::StoreU(hn::MulAdd(a, si, hn::Mul(b, co)), d, x + half_dim + c);
      });
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(SiluGate);
HWY_EXPORT(AddInPlace);
HWY_EXPORT(Rope);

namespace cpu {

void RmsNorm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* y) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, eps, n, dim, y);
}

void SiluGate(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(SiluGate)(gate, up, n, y);
}

void AddInPlace(float* x, const float* y, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddInPlace)(x, y, n);
}

void Rope(float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table) {
  HWY_DYNAMIC_DISPATCH(Rope)(x, n, heads, head_dim, half_dim, positions, cos_table, sin_table);
}

}  // namespace cpu
}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
