// Shaped codes with one row per SIMD lane: what is sequential in a row (feedback, sweeps) runs for
// a strip of rows at once, and a coefficient of the metric is one broadcast. All arrays of a strip
// are [channel][row]. Channels go in blocks whose sums stay in registers: those over channels
// outside the block are a matrix product; inside it, a new error is added to the sums of the
// channels below it at once, so that nothing but the rounding itself waits for it. The bytes are
// the reference's: lanes do what it does, in its order.
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
// Channels whose sums are in registers: 16 sums in 32 registers, 8 in 16.
constexpr int kBlock = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
constexpr int kStarts = 3;
constexpr float kStart[kStarts] = {0.9f, 0.75f, 0.62f};

// f(v) for each vector of a strip.
template <class F>
HWY_INLINE void ForStrip(const F& f) {
  for (int v = 0; v < kVectors; ++v) f(v);
}

// The rows of a strip. `lanes` floats per vector, kVectors vectors per channel.
struct Strip {
  int d, lanes, rows;
  const float* y;  // [d][kPageTokens], from the strip's first row on
  alignas(64) float x[kMaxHeadDim * kMaxStrip], q[kMaxHeadDim * kMaxStrip];
  alignas(64) float e[kMaxHeadDim * kMaxStrip];
  alignas(64) float above[kMaxHeadDim * kMaxStrip];  // of e, in the factors of the sweeps
  alignas(64) float rest[kBlock * kMaxStrip];
  alignas(64) float middle[kMaxStrip], step[kMaxStrip];

  HWY_INLINE V Y(int channel, int v) const {
    return hn::Load(D(), y + channel * kPageTokens + v * lanes);
  }
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

// Step and lowest value of code 0 for one vector of rows and one start of FitAffine.
struct Affine {
  V lo, step, inverse, shift;
  V k1, k2, kc;

  HWY_INLINE void Set(V new_lo, V new_step) {
    const D d;
    lo = new_lo;
    step = new_step;
    inverse = hn::Div(hn::Set(d, 1.0f), step);
    shift = hn::Neg(hn::Mul(lo, inverse));
    k1 = k2 = kc = hn::Zero(d);
  }
  HWY_INLINE V Code(V c) const { return Nearest(hn::MulAdd(c, inverse, shift)); }
};

// The affine start of one vector of rows: FitAffine of the reference, all starts abreast.
HWY_INLINE void FitAffine(Strip* s, int v, float widen) {
  const D d;
  const V share = hn::Set(d, 1.0f / static_cast<float>(s->d)), least = hn::Set(d, 1e-8f);
  V sum = hn::Zero(d), min = s->Y(0, v), max = min;
  for (int j = 0; j < s->d; ++j) {
    const V y = s->Y(j, v);
    sum = hn::Add(sum, y);
    min = hn::Min(min, y);
    max = hn::Max(max, y);
  }
  const V mean = hn::Mul(sum, share);
  // e is free until step 2: it holds the values about their mean.
  for (int j = 0; j < s->d; ++j) s->Put(hn::Sub(s->Y(j, v), mean), s->e, j, v);
  Affine fits[kStarts];
  for (int i = 0; i < kStarts; ++i) {
    const V lo = hn::Mul(min, hn::Set(d, kStart[i]));
    const V range = hn::Sub(hn::Mul(max, hn::Set(d, kStart[i])), lo);
    fits[i].Set(hn::Sub(lo, mean), hn::Max(hn::Div(range, hn::Set(d, 3.0f)), least));
  }
  for (int round = 0; round < 3; ++round) {
    for (int j = 0; j < s->d; ++j) {
      const V c = s->Get(s->e, j, v);
      for (Affine& f : fits) {
        const V k = f.Code(c);
        f.k1 = hn::Add(f.k1, k);
        f.k2 = hn::MulAdd(k, k, f.k2);
        f.kc = hn::MulAdd(k, c, f.kc);
      }
    }
    for (Affine& f : fits) {
      const V mean_code = hn::Mul(f.k1, share);
      const V variance = hn::Max(hn::Sub(f.k2, hn::Mul(f.k1, mean_code)), least);
      const V step = hn::Max(hn::Div(f.kc, variance), least);
      f.Set(hn::Neg(hn::Mul(step, mean_code)), step);
    }
  }
  V errors[kStarts];
  for (V& error : errors) error = hn::Zero(d);
  for (int j = 0; j < s->d; ++j) {
    const V c = s->Get(s->e, j, v);
    for (int i = 0; i < kStarts; ++i) {
      const V difference = hn::Sub(hn::MulAdd(fits[i].Code(c), fits[i].step, fits[i].lo), c);
      errors[i] = hn::MulAdd(difference, difference, errors[i]);
    }
  }
  V best = hn::Set(d, INFINITY), best_lo = hn::Zero(d), best_step = least;
  for (int i = 0; i < kStarts; ++i) {
    const auto better = hn::Lt(errors[i], best);
    best = hn::IfThenElse(better, errors[i], best);
    best_lo = hn::IfThenElse(better, fits[i].lo, best_lo);
    best_step = hn::IfThenElse(better, fits[i].step, best_step);
  }
  s->Put(hn::Add(hn::MulAdd(hn::Set(d, 1.5f), best_step, best_lo), mean), s->middle, 0, v);
  s->Put(hn::Mul(best_step, hn::Set(d, widen)), s->step, 0, v);
}

HWY_INLINE void FitSymmetric(Strip* s, int v, float widen) {
  const D d;
  V squares = hn::Zero(d);
  for (int j = 0; j < s->d; ++j) {
    const V y = s->Y(j, v);
    squares = hn::MulAdd(y, y, squares);
  }
  const V mean = hn::Mul(squares, hn::Set(d, 1.0f / static_cast<float>(s->d)));
  const V step = hn::Max(hn::Mul(hn::Sqrt(mean), hn::Set(d, 0.996f)), hn::Set(d, 1e-8f));
  s->Put(hn::Zero(d), s->middle, 0, v);
  s->Put(hn::Mul(step, hn::Set(d, widen)), s->step, 0, v);
}

// The sums of a block's channels, in registers.
struct Sums {
  V t[kBlock][kVectors];

  // t_j += factors[i][j] values_i for the first `n` channels j of the block.
  HWY_INLINE void Add(const float* factors_of_i, const V (&values_i)[kVectors], int n) {
    for (int c = 0; c < n; ++c) {
      const V f = hn::Set(D(), factors_of_i[c]);
      ForStrip([&](int v) HWY_ATTR { t[c][v] = hn::MulAdd(f, values_i[v], t[c][v]); });
    }
  }
  // The same, values from memory.
  HWY_INLINE void Add(const Strip& s, const float* factors, const float* values, int block, int i,
                      int n = kBlock) {
    V values_i[kVectors];
    ForStrip([&](int v) HWY_ATTR { values_i[v] = s.Get(values, i, v); });
    Add(factors + i * s.d + block, values_i, n);
  }
  // To the sums over all channels behind the block.
  HWY_INLINE void SetAbove(const Strip& s, const float* factors, const float* values, int block) {
    for (auto& channel : t) ForStrip([&](int v) HWY_ATTR { channel[v] = hn::Zero(D()); });
    for (int i = s.d - 1; i >= block + kBlock; --i) Add(s, factors, values, block, i);
  }
};

// x and the sums over the channels below, for the channels of a block, into `rest`.
HWY_NOINLINE void SumBelow(Strip* s, const float* factors, int block) {
  Sums sums;
  for (int c = 0; c < kBlock; ++c)
    ForStrip([&](int v) HWY_ATTR { sums.t[c][v] = s->Get(s->x, block + c, v); });
  for (int i = 0; i < block; ++i) sums.Add(*s, factors, s->e, block, i);
  for (int c = 1; c < kBlock; ++c) {
    for (int i = 0; i < c; ++i) {
      const V f = hn::Set(D(), factors[(block + i) * s->d + block + c]);
      ForStrip([&](int v) HWY_ATTR {
        sums.t[c][v] = hn::MulAdd(f, s->Get(s->e, block + i, v), sums.t[c][v]);
      });
    }
  }
  for (int c = 0; c < kBlock; ++c)
    ForStrip([&](int v) HWY_ATTR { s->Put(sums.t[c][v], s->rest, c, v); });
}

// Codes of a block from `rest` (its channel 0 is the block's first) and the errors behind it.
HWY_NOINLINE void ChooseBlock(Strip* s, const float* factors, const float* rest, int block) {
  const D d;
  const V half = hn::Set(d, 1.5f);
  Sums sums;
  sums.SetAbove(*s, factors, s->e, block);
  for (int c = kBlock - 1; c >= 0; --c) {
    V e[kVectors];
    ForStrip([&](int v) HWY_ATTR {
      const V target = hn::Add(s->Get(rest, c, v), sums.t[c][v]);
      const V q = hn::Sub(Nearest(hn::Add(target, half)), half);
      e[v] = hn::Sub(s->Get(s->x, block + c, v), q);
      s->Put(sums.t[c][v], s->above, block + c, v);
      s->Put(q, s->q, block + c, v);
      s->Put(e[v], s->e, block + c, v);
    });
    sums.Add(factors + (block + c) * s->d + block, e, c);
  }
}

void Feedback(Strip* s, const float* factors) {
  for (int block = s->d - kBlock; block >= 0; block -= kBlock)
    ChooseBlock(s, factors, s->x + block * s->rows, block);
}

void Sweep(Strip* s, const float* factors) {
  for (int block = s->d - kBlock; block >= 0; block -= kBlock) {
    SumBelow(s, factors, block);
    ChooseBlock(s, factors, s->rest, block);
  }
}

// The sums above the channels of a block, complete; done(c, v, sum) takes them from the last one
// to the first.
template <class Done>
HWY_INLINE void ForEachAbove(const Strip& s, const float* factors, const float* values, int block,
                             const Done& done) {
  Sums sums;
  sums.SetAbove(s, factors, values, block);
  for (int c = kBlock - 1; c >= 0; --c) {
    ForStrip([&](int v) HWY_ATTR { done(c, v, sums.t[c][v]); });
    sums.Add(s, factors, values, block, block + c, c);
  }
}

struct Products {
  V qq[kVectors], qx[kVectors], q1[kVectors], x1[kVectors], xx[kVectors];
};

// Products of q and x in the metric: InnerProducts of the reference.
HWY_NOINLINE void InnerProducts(Strip* s, const ShapedMetric& m, Products* p) {
  const D d;
  const V two = hn::Set(d, 2.0f);
  for (V* sums : {p->qq, p->qx, p->q1, p->x1, p->xx})
    ForStrip([&](int v) HWY_ATTR { sums[v] = hn::Zero(d); });
  for (int block = s->d - kBlock; block >= 0; block -= kBlock) {
    ForEachAbove(*s, m.sweep, s->x, block, [&](int c, int v, V above_x) HWY_ATTR {
      const int j = block + c;
      const V weight = hn::Set(d, m.weight[j]), ones = hn::Set(d, m.ones[j]);
      const V x = s->Get(s->x, j, v), q = s->Get(s->q, j, v);
      const V above_q = hn::Sub(above_x, s->Get(s->above, j, v));
      const V wx = hn::Mul(weight, x), wq = hn::Mul(weight, q);
      p->qq[v] = hn::MulAdd(wq, hn::MulAdd(two, above_q, q), p->qq[v]);
      p->qx[v] = hn::MulAdd(wq, hn::Add(x, above_x), hn::MulAdd(wx, above_q, p->qx[v]));
      p->xx[v] = hn::MulAdd(wx, hn::MulAdd(two, above_x, x), p->xx[v]);
      p->q1[v] = hn::MulAdd(ones, q, p->q1[v]);
      p->x1[v] = hn::MulAdd(ones, x, p->x1[v]);
    });
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
    s->y = y + first;
    ForStrip([&](int v) HWY_ATTR {
      a.symmetric ? FitSymmetric(s, v, a.widen) : FitAffine(s, v, a.widen);
      const V middle = s->Get(s->middle, 0, v);
      const V inverse = hn::Div(hn::Set(d, 1.0f), s->Get(s->step, 0, v));
      for (int j = 0; j < s->d; ++j)
        s->Put(hn::Mul(hn::Sub(s->Y(j, v), middle), inverse), s->x, j, v);
    });
    Feedback(s, a.metric.feedback);
    for (int i = 0; i < a.sweeps; ++i) Sweep(s, a.metric.sweep);
    for (int block = 0; a.sweeps == 0 && block < s->d; block += kBlock) {
      ForEachAbove(*s, a.metric.sweep, s->e, block,
                   [&](int c, int v, V above) HWY_ATTR { s->Put(above, s->above, block + c, v); });
    }
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

constexpr int kInfBits = 0x7f80;          // bf16: Inf, and NaNs beyond
constexpr int kLargestFp16Bits = 0x477f;  // the largest bf16 within fp16's range

KernelStatus EncodePageHeadShaped(const ShapedArgs& args, EncodeStats* stats) {
  constexpr int kMax = 128 * kPageTokens;
  const int d = args.head_dim;
  alignas(64) float y[kMax];  // [d][64]
  uint64_t cut = 0;           // a bit per row
  for (int token = 0; token < kPageTokens; ++token) {
    const Bf16* row = args.rows + token * args.row_stride;
    int largest = 0;  // |bf16| orders like its bits
    for (int j = 0; j < d; ++j) largest = std::max(largest, row[j] & 0x7fff);
    if (largest >= kInfBits) return KernelStatus::kNonFinite;
    if (largest <= kLargestFp16Bits) {
      for (int j = 0; j < d; ++j) y[j * kPageTokens + token] = ToFloat(row[j]);
    } else {
      cut |= uint64_t{1} << token;
      for (int j = 0; j < d; ++j)
        y[j * kPageTokens + token] = std::clamp(ToFloat(row[j]), -kLargestFp16, kLargestFp16);
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
    stats->clamped_fp16 += (cut >> token & 1) != 0 || ExceedsFp16(scale[token]) ||
                           (!args.symmetric && ExceedsFp16(offset[token]));
  }
  std::memcpy(args.page_head + ScaleOffset(d, args.side, !args.symmetric), planes,
              sizeof(planes) / (args.symmetric ? 2 : 1));
  return KernelStatus::kOk;
}

}  // namespace cpu
}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
