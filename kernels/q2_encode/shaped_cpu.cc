// Shaped codes with one row per SIMD lane: what is sequential in a row (feedback, sweeps) runs for
// a strip of rows at once, and a coefficient of the metric is one broadcast. All arrays of a strip
// are [channel][row]. The sums over channels outside a block of 8 are matrix products, kept in
// registers for several channels at a time; inside a block errors depend on each other, and go one
// by one. The bytes are the reference's: lanes do what it does, in its order.
#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/q2_encode/shaped_cpu.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "hwy/highway.h"
#include "kernels/q2_encode/byte_order.h"
#include "kernels/q2_encode/op_backends.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// Without fused multiply-add the reference's bytes are not to be had.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
bool EncodeStrips(const ShapedArgs&, const float*, uint8_t*, float*, float*) {
  return false;
}
#else

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

constexpr int kMaxHeadDim = 128;
// Of a strip: its errors (16 KB with 16 lanes) stay in the first cache beside the coefficients.
constexpr int kVectors = 2;
constexpr int kMaxStrip = kVectors * 16;
// Channels of a matrix product: 16 sums in 32 registers, 8 in 16.
constexpr int kTogether = HWY_TARGET <= HWY_AVX3 ? 8 : 4;

// f(v) for each vector of a strip.
template <class F>
HWY_INLINE void ForStrip(const F& f) {
  for (int v = 0; v < kVectors; ++v) f(v);
}

// The rows of a strip. `lanes` floats per vector, kVectors vectors per channel.
struct Strip {
  int d, lanes, rows;
  alignas(64) float y[kMaxHeadDim * kMaxStrip];
  alignas(64) float x[kMaxHeadDim * kMaxStrip], q[kMaxHeadDim * kMaxStrip];
  alignas(64) float e[kMaxHeadDim * kMaxStrip];
  alignas(64) float sums[kShapedBlock * kMaxStrip];
  alignas(64) float middle[kMaxStrip], step[kMaxStrip];

  HWY_INLINE V Get(const float* array, int channel, int v) const {
    return hn::Load(D(), array + channel * rows + v * lanes);
  }
  HWY_INLINE void Put(V value, float* array, int channel, int v) const {
    hn::Store(value, D(), array + channel * rows + v * lanes);
  }
};

HWY_INLINE V Nearest(V level) {
  const D d;
  return hn::Min(hn::Max(hn::Round(level), hn::Zero(d)), hn::Set(d, 3.0f));
}

// The affine start of one vector of rows: FitAffine of the reference.
HWY_INLINE void FitAffine(Strip* s, int v, float widen) {
  const D d;
  const V share = hn::Set(d, 1.0f / static_cast<float>(s->d)), least = hn::Set(d, 1e-8f);
  V sum = hn::Zero(d), min = s->Get(s->y, 0, v), max = min;
  for (int j = 0; j < s->d; ++j) {
    const V y = s->Get(s->y, j, v);
    sum = hn::Add(sum, y);
    min = hn::Min(min, y);
    max = hn::Max(max, y);
  }
  const V mean = hn::Mul(sum, share), one = hn::Set(d, 1.0f);
  // x and e are free until step 2: e holds the values about their mean.
  for (int j = 0; j < s->d; ++j) s->Put(hn::Sub(s->Get(s->y, j, v), mean), s->e, j, v);
  V best = hn::Set(d, INFINITY), best_lo = hn::Zero(d), best_step = least;
  for (const float start : {0.9f, 0.75f, 0.62f}) {
    V lo = hn::Mul(min, hn::Set(d, start));
    V step =
        hn::Max(hn::Div(hn::Sub(hn::Mul(max, hn::Set(d, start)), lo), hn::Set(d, 3.0f)), least);
    lo = hn::Sub(lo, mean);
    for (int round = 0; round < 3; ++round) {
      const V inverse = hn::Div(one, step);
      V k1 = hn::Zero(d), k2 = hn::Zero(d), kc = hn::Zero(d);
      for (int j = 0; j < s->d; ++j) {
        const V c = s->Get(s->e, j, v);
        const V k = Nearest(hn::Mul(hn::Sub(c, lo), inverse));
        k1 = hn::Add(k1, k);
        k2 = hn::MulAdd(k, k, k2);
        kc = hn::MulAdd(k, c, kc);
      }
      const V mean_code = hn::Mul(k1, share);
      step = hn::Max(hn::Div(kc, hn::Max(hn::Sub(k2, hn::Mul(k1, mean_code)), least)), least);
      lo = hn::Neg(hn::Mul(step, mean_code));
    }
    const V inverse = hn::Div(one, step);
    V error = hn::Zero(d);
    for (int j = 0; j < s->d; ++j) {
      const V c = s->Get(s->e, j, v);
      const V k = Nearest(hn::Mul(hn::Sub(c, lo), inverse));
      const V difference = hn::Sub(hn::MulAdd(k, step, lo), c);
      error = hn::MulAdd(difference, difference, error);
    }
    const auto better = hn::Lt(error, best);
    best = hn::IfThenElse(better, error, best);
    best_lo = hn::IfThenElse(better, lo, best_lo);
    best_step = hn::IfThenElse(better, step, best_step);
  }
  s->Put(hn::Add(hn::MulAdd(hn::Set(d, 1.5f), best_step, best_lo), mean), s->middle, 0, v);
  s->Put(hn::Mul(best_step, hn::Set(d, widen)), s->step, 0, v);
}

HWY_INLINE void FitSymmetric(Strip* s, int v, float widen) {
  const D d;
  V squares = hn::Zero(d);
  for (int j = 0; j < s->d; ++j) {
    const V y = s->Get(s->y, j, v);
    squares = hn::MulAdd(y, y, squares);
  }
  const V mean = hn::Mul(squares, hn::Set(d, 1.0f / static_cast<float>(s->d)));
  const V step = hn::Max(hn::Mul(hn::Sqrt(mean), hn::Set(d, 0.996f)), hn::Set(d, 1e-8f));
  s->Put(hn::Zero(d), s->middle, 0, v);
  s->Put(hn::Mul(step, hn::Set(d, widen)), s->step, 0, v);
}

// sums[c] = x + factors . values over all channels outside the block, for the channels c from
// `block` on. `above`: channels behind the block only.
HWY_INLINE void OutsideBlock(Strip* s, const float* factors, const float* values, const float* x,
                             int block, bool above) {
  const D d;
  for (int c = 0; c < kShapedBlock; c += kTogether) {
    V t[kTogether][kVectors];
    for (int n = 0; n < kTogether; ++n)
      ForStrip([&](int v) HWY_ATTR { t[n][v] = s->Get(x, block + c + n, v); });
    const auto add = [&](int i) HWY_ATTR {
      V values_i[kVectors];
      ForStrip([&](int v) HWY_ATTR { values_i[v] = s->Get(values, i, v); });
      for (int n = 0; n < kTogether; ++n) {
        const V f = hn::Set(d, factors[(block + c + n) * s->d + i]);
        ForStrip([&](int v) HWY_ATTR { t[n][v] = hn::MulAdd(f, values_i[v], t[n][v]); });
      }
    };
    for (int i = s->d - 1; i >= block + kShapedBlock; --i) add(i);
    if (!above) {
      for (int i = block - 1; i >= 0; --i) add(i);
    }
    for (int n = 0; n < kTogether; ++n)
      ForStrip([&](int v) HWY_ATTR { s->Put(t[n][v], s->sums, c + n, v); });
  }
}

// The rest of the sum of channel j, over its block; done(v, sum) takes each vector.
template <class Done>
HWY_INLINE void InsideBlock(Strip* s, const float* factors, const float* values, int block, int j,
                            bool above, const Done& done) {
  const D d;
  V t[kVectors];
  ForStrip([&](int v) HWY_ATTR { t[v] = s->Get(s->sums, j - block, v); });
  for (int i = block + kShapedBlock - 1; i >= (above ? j + 1 : block); --i) {
    if (i == j) continue;
    const V f = hn::Set(d, factors[j * s->d + i]);
    ForStrip([&](int v) HWY_ATTR { t[v] = hn::MulAdd(f, s->Get(values, i, v), t[v]); });
  }
  ForStrip([&](int v) HWY_ATTR { done(v, t[v]); });
}

HWY_INLINE void Sweep(Strip* s, const float* factors, bool above) {
  const D d;
  const V half = hn::Set(d, 1.5f);
  for (int block = s->d - kShapedBlock; block >= 0; block -= kShapedBlock) {
    OutsideBlock(s, factors, s->e, s->x, block, above);
    for (int j = block + kShapedBlock - 1; j >= block; --j) {
      InsideBlock(s, factors, s->e, block, j, above, [&](int v, V target) HWY_ATTR {
        const V q = hn::Sub(Nearest(hn::Add(target, half)), half);
        s->Put(q, s->q, j, v);
        s->Put(hn::Sub(s->Get(s->x, j, v), q), s->e, j, v);
      });
    }
  }
}

struct Products {
  V qq[kVectors], qx[kVectors], q1[kVectors], x1[kVectors], xx[kVectors];
};

// Products of q and x in the metric. `e` is used up.
HWY_INLINE void InnerProducts(Strip* s, const ShapedMetric& m, Products* p) {
  const D d;
  for (V* sums : {p->qq, p->qx, p->q1, p->x1, p->xx})
    ForStrip([&](int v) HWY_ATTR { sums[v] = hn::Zero(d); });
  for (int block = s->d - kShapedBlock; block >= 0; block -= kShapedBlock) {
    OutsideBlock(s, m.feedback, s->q, s->q, block, true);
    for (int j = block + kShapedBlock - 1; j >= block; --j) {
      InsideBlock(s, m.feedback, s->q, block, j, true,
                  [&](int v, V q) HWY_ATTR { s->Put(q, s->e, j, v); });
    }
    OutsideBlock(s, m.feedback, s->x, s->x, block, true);
    for (int j = block + kShapedBlock - 1; j >= block; --j) {
      const V weight = hn::Set(d, m.weight[j]), ones = hn::Set(d, m.ones[j]);
      InsideBlock(s, m.feedback, s->x, block, j, true, [&](int v, V x) HWY_ATTR {
        const V q = s->Get(s->e, j, v);
        const V dq = hn::Mul(weight, q), dx = hn::Mul(weight, x);
        p->qq[v] = hn::MulAdd(dq, q, p->qq[v]);
        p->qx[v] = hn::MulAdd(dq, x, p->qx[v]);
        p->q1[v] = hn::MulAdd(dq, ones, p->q1[v]);
        p->x1[v] = hn::MulAdd(dx, ones, p->x1[v]);
        p->xx[v] = hn::MulAdd(dx, x, p->xx[v]);
      });
    }
  }
}

// Scale and offset of one vector of rows: Refit of the reference.
HWY_INLINE void Refit(const ShapedArgs& a, const Strip& s, const Products& p, int v, float* scale,
                      float* offset) {
  const D d;
  const auto mul = [](V x, V y) HWY_ATTR { return hn::Mul(x, y); };
  const auto within = [d](V fitted) HWY_ATTR {
    return hn::And(hn::Gt(fitted, hn::Set(d, 0.3f)), hn::Lt(fitted, hn::Set(d, 3.0f)));
  };
  const V n = hn::Set(d, a.metric.ones_norm), one = hn::Set(d, 1.0f), least = hn::Set(d, 1e-9f);
  V alpha = one, beta = hn::Zero(d);
  if (a.symmetric) {
    const V fitted = hn::Div(p.qx[v], hn::Max(p.qq[v], least));
    alpha = hn::IfThenElse(within(fitted), fitted, one);
  } else {
    const V determinant = hn::Max(hn::Sub(mul(p.qq[v], n), mul(p.q1[v], p.q1[v])), least);
    const V fitted = hn::Div(hn::Sub(mul(p.qx[v], n), mul(p.x1[v], p.q1[v])), determinant);
    const V moved = hn::Div(hn::Sub(mul(p.qq[v], p.x1[v]), mul(p.q1[v], p.qx[v])), determinant);
    const auto good = hn::And(within(fitted), hn::Le(hn::Abs(moved), hn::Set(d, 3.0f)));
    alpha = hn::IfThenElse(good, fitted, one);
    beta = hn::IfThenElse(good, moved, hn::Zero(d));
  }
  const V middle = s.Get(s.middle, 0, v), step = s.Get(s.step, 0, v);
  const V m = hn::Div(middle, step), b = hn::Add(beta, m);
  const V yy = hn::Add(hn::Add(p.xx[v], mul(mul(hn::Set(d, 2.0f), m), p.x1[v])), mul(mul(m, m), n));
  const V approximated =
      hn::Add(hn::Add(hn::Add(mul(alpha, p.qx[v]), mul(mul(alpha, m), p.q1[v])), mul(b, p.x1[v])),
              mul(mul(b, m), n));
  const V ratio = hn::Min(hn::Max(hn::Div(yy, hn::Max(approximated, least)), hn::Set(d, 0.8f)),
                          hn::Set(d, 1.5f));
  const V g = hn::Add(one, mul(hn::Set(d, a.gain), hn::Sub(ratio, one)));
  const V fitted_step = mul(step, alpha);
  hn::Store(mul(fitted_step, g), d, scale + v * s.lanes);
  const V lowest = hn::Sub(hn::Add(middle, mul(step, beta)), mul(hn::Set(d, 1.5f), fitted_step));
  hn::Store(mul(lowest, g), d, offset + v * s.lanes);
}

// The packed bytes of the strip's rows, [byte][64 rows].
HWY_INLINE void Pack(const Strip& s, int first, uint8_t* bytes) {
  const D d;
  const hn::RebindToSigned<D> di;
  for (int b = 0; b < s.d / 4; ++b) {
    const int channel = 64 * (b / 16) + b % 16;
    ForStrip([&](int v) HWY_ATTR {
      const auto code = [&](int c) HWY_ATTR {
        return hn::ConvertTo(di, hn::Add(s.Get(s.q, c, v), hn::Set(d, 1.5f)));
      };
      const auto low = hn::Or(code(channel), hn::ShiftLeft<2>(code(channel + 16)));
      const auto high =
          hn::Or(hn::ShiftLeft<4>(code(channel + 32)), hn::ShiftLeft<6>(code(channel + 48)));
      const hn::Rebind<uint8_t, D> d8;
      hn::StoreU(hn::DemoteTo(d8, hn::Or(low, high)), d8,
                 bytes + b * kPageTokens + first + v * s.lanes);
    });
  }
}

// y: [d][64]; bytes: [d / 4][64]; scale, offset: [64], not rounded yet. False: this instruction set
// cannot.
bool EncodeStrips(const ShapedArgs& a, const float* y, uint8_t* bytes, float* scale,
                  float* offset) {
  const D d;
  // On the heap: 50 KB for each of the instruction sets would be part of every thread's stack, and
  // libraries that start threads with small stacks (prometheus-cpp's server) could not any more.
  static thread_local const std::unique_ptr<Strip> strip = std::make_unique<Strip>();
  Strip* const s = strip.get();
  s->d = a.head_dim;
  s->lanes = static_cast<int>(hn::Lanes(d));
  s->rows = kVectors * s->lanes;
  for (int first = 0; first < kPageTokens; first += s->rows) {
    for (int j = 0; j < s->d; ++j)
      std::memcpy(s->y + j * s->rows, y + j * kPageTokens + first, s->rows * sizeof(float));
    ForStrip([&](int v) HWY_ATTR {
      a.symmetric ? FitSymmetric(s, v, a.widen) : FitAffine(s, v, a.widen);
      const V middle = s->Get(s->middle, 0, v);
      const V inverse = hn::Div(hn::Set(d, 1.0f), s->Get(s->step, 0, v));
      for (int j = 0; j < s->d; ++j)
        s->Put(hn::Mul(hn::Sub(s->Get(s->y, j, v), middle), inverse), s->x, j, v);
    });
    Sweep(s, a.metric.feedback, true);
    for (int i = 0; i < a.sweeps; ++i) Sweep(s, a.metric.sweep, false);
    Pack(*s, first, bytes);
    Products products;
    InnerProducts(s, a.metric, &products);
    alignas(64) float scales[kMaxStrip], offsets[kMaxStrip];
    ForStrip([&](int v) HWY_ATTR { Refit(a, *s, products, v, scales, offsets); });
    std::memcpy(scale + first, scales, s->rows * sizeof(float));
    std::memcpy(offset + first, offsets, s->rows * sizeof(float));
  }
  return true;
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(EncodeStrips);

namespace cpu {

KernelStatus EncodePageHeadShaped(const ShapedArgs& args, EncodeStats* stats) {
  constexpr int kMax = 128 * kPageTokens;
  const int d = args.head_dim;
  alignas(64) float y[kMax];  // [d][64]
  uint64_t cut = 0;           // a bit per row
  for (int token = 0; token < kPageTokens; ++token) {
    const Bf16* row = args.rows + token * args.row_stride;
    for (int j = 0; j < d; ++j) {
      const float value = ToFloat(row[j]);
      if (!std::isfinite(value)) return KernelStatus::kNonFinite;
      const float kept = std::clamp(value, -kLargestFp16, kLargestFp16);
      cut |= uint64_t{kept != value} << token;
      y[j * kPageTokens + token] = kept;
    }
  }
  uint8_t bytes[kMax / 4];
  float scale[kPageTokens], offset[kPageTokens];
  if (!HWY_DYNAMIC_DISPATCH(EncodeStrips)(args, y, bytes, scale, offset))
    return ref::EncodePageHeadShaped(args, stats);
  uint8_t* codes = args.page_head + static_cast<size_t>(args.side) * CodesBytes(d);
  const uint16_t* order = PackedByteOrder(args.side, d);
  for (int token = 0; token < kPageTokens; ++token) {
    for (int b = 0; b < d / 4; ++b)
      codes[order[token * (d / 4) + b]] = bytes[b * kPageTokens + token];
  }
  Fp16 planes[2 * kPageTokens];
  for (int token = 0; token < kPageTokens; ++token) {
    planes[MetaIndex(token)] = FloatToFp16(scale[token]);
    planes[kPageTokens + MetaIndex(token)] = FloatToFp16(offset[token]);
    if (stats == nullptr) continue;
    ++stats->rows;
    stats->clamped_fp16 +=
        (cut >> token & 1) != 0 || ExceedsFp16(scale[token]) || ExceedsFp16(offset[token]);
  }
  std::memcpy(args.page_head + MetaOffset(d) + static_cast<size_t>(args.side) * 4 * kPageTokens,
              planes, sizeof(planes));
  return KernelStatus::kOk;
}

}  // namespace cpu
}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
