// The specification of shaped codes: one row at a time, every operation in its order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/q2_encode/op_backends.h"

namespace oscarkv::kernels::ref {
namespace {

constexpr int kMaxHeadDim = 128;
constexpr float kStarts[] = {0.9f, 0.75f, 0.62f};
constexpr float kLeastStep = 1e-8f;

struct Row {
  int d;
  float y[kMaxHeadDim];
  float middle, step;
  float x[kMaxHeadDim], q[kMaxHeadDim], e[kMaxHeadDim];
  float above[kMaxHeadDim];  // sum over i > j of W_ij / W_jj e_i
};

// The code nearest to a level given as a code's number: ties to even.
float Nearest(float level) {
  return std::min(std::max(std::nearbyint(level), 0.0f), 3.0f);
}

// Step 1, affine. `c` are values about their mean, `lo` the value of code 0.
void FitAffine(Row* row, float widen) {
  const int d = row->d;
  const float share = 1.0f / static_cast<float>(d);  // exact
  float sum = 0, min = row->y[0], max = row->y[0];
  for (int j = 0; j < d; ++j) {
    sum += row->y[j];
    min = std::min(min, row->y[j]);
    max = std::max(max, row->y[j]);
  }
  const float mean = sum * share;
  float c[kMaxHeadDim];
  for (int j = 0; j < d; ++j) c[j] = row->y[j] - mean;
  float best = INFINITY, best_lo = 0, best_step = kLeastStep;
  for (const float start : kStarts) {
    float lo = min * start;
    float step = std::max((max * start - lo) / 3.0f, kLeastStep);
    lo -= mean;
    for (int round = 0; round < 3; ++round) {
      const float inverse = 1.0f / step, shift = -(lo * inverse);
      float k1 = 0, k2 = 0, kc = 0;
      for (int j = 0; j < d; ++j) {
        const float k = Nearest(std::fma(c[j], inverse, shift));
        k1 += k;
        k2 = std::fma(k, k, k2);
        kc = std::fma(k, c[j], kc);
      }
      const float mean_code = k1 * share;
      step = std::max(kc / std::max(k2 - k1 * mean_code, kLeastStep), kLeastStep);
      lo = -(step * mean_code);
    }
    const float inverse = 1.0f / step, shift = -(lo * inverse);
    float error = 0;
    for (int j = 0; j < d; ++j) {
      const float k = Nearest(std::fma(c[j], inverse, shift));
      const float difference = std::fma(k, step, lo) - c[j];
      error = std::fma(difference, difference, error);
    }
    if (error < best) {
      best = error;
      best_lo = lo;
      best_step = step;
    }
  }
  row->middle = std::fma(1.5f, best_step, best_lo) + mean;
  row->step = best_step * widen;
}

void FitSymmetric(Row* row, float widen) {
  float squares = 0;
  for (int j = 0; j < row->d; ++j) squares = std::fma(row->y[j], row->y[j], squares);
  row->middle = 0;
  row->step =
      std::max(std::sqrt(squares * (1.0f / static_cast<float>(row->d))) * 0.996f, kLeastStep) *
      widen;
}

// sum over i > j of factors[i][j] v_i.
float Above(const float* factors, const float* v, int j, int d) {
  float sum = 0;
  for (int i = d - 1; i > j; --i) sum = std::fma(factors[i * d + j], v[i], sum);
  return sum;
}

void ChooseCodes(const ShapedArgs& a, Row* row) {
  const int d = row->d;
  const auto put = [row](int j, float target) {
    row->q[j] = Nearest(target + 1.5f) - 1.5f;
    row->e[j] = row->x[j] - row->q[j];
  };
  for (int j = d - 1; j >= 0; --j) put(j, row->x[j] + Above(a.metric.feedback, row->e, j, d));
  for (int sweep = 0; sweep < a.sweeps; ++sweep) {
    for (int j = d - 1; j >= 0; --j) {
      float rest = row->x[j];
      for (int i = 0; i < j; ++i) rest = std::fma(a.metric.sweep[i * d + j], row->e[i], rest);
      row->above[j] = Above(a.metric.sweep, row->e, j, d);
      put(j, rest + row->above[j]);
    }
  }
  if (a.sweeps > 0) return;
  for (int j = 0; j < d; ++j) row->above[j] = Above(a.metric.sweep, row->e, j, d);
}

// Inner products in the metric: <a, b> = sum of W_jj (a_j b_j + a_j B_j + A_j b_j), A_j and B_j
// being Above() of a and b. That of q = x - e is known from those of x and e.
struct Products {
  float qq = 0, qx = 0, q1 = 0, x1 = 0, xx = 0;
};
Products InnerProducts(const ShapedMetric& m, const Row& row) {
  Products p;
  for (int j = row.d - 1; j >= 0; --j) {
    const float x = row.x[j], q = row.q[j];
    const float above_x = Above(m.sweep, row.x, j, row.d), above_q = above_x - row.above[j];
    const float wx = m.weight[j] * x, wq = m.weight[j] * q;
    p.qq = std::fma(wq, std::fma(2.0f, above_q, q), p.qq);
    p.qx = std::fma(wq, x + above_x, std::fma(wx, above_q, p.qx));
    p.xx = std::fma(wx, std::fma(2.0f, above_x, x), p.xx);
    p.q1 = std::fma(m.ones[j], q, p.q1);
    p.x1 = std::fma(m.ones[j], x, p.x1);
  }
  return p;
}

// Steps 3 and 4: scale and offset before their rounding.
void Refit(const ShapedArgs& a, const Row& row, float* scale, float* offset) {
  const Products p = InnerProducts(a.metric, row);
  const float n = a.metric.ones_norm;
  float alpha = 1, beta = 0;  // x ~ alpha q + beta
  if (a.symmetric) {
    const float fitted = p.qx / std::max(p.qq, 1e-9f);
    if (fitted > 0.3f && fitted < 3.0f) alpha = fitted;
  } else {
    const float determinant = std::max(p.qq * n - p.q1 * p.q1, 1e-9f);
    const float fitted = (p.qx * n - p.x1 * p.q1) / determinant;
    const float moved = (p.qq * p.x1 - p.q1 * p.qx) / determinant;
    if (fitted > 0.3f && fitted < 3.0f && std::fabs(moved) <= 3.0f) {
      alpha = fitted;
      beta = moved;
    }
  }
  const float m = row.middle / row.step, b = beta + m;
  const float yy = p.xx + (2.0f * m) * p.x1 + (m * m) * n;
  const float approximated = alpha * p.qx + (alpha * m) * p.q1 + b * p.x1 + (b * m) * n;
  const float ratio = std::min(std::max(yy / std::max(approximated, 1e-9f), 0.8f), 1.5f);
  const float g = 1.0f + a.gain * (ratio - 1.0f);
  const float step = row.step * alpha;
  *scale = step * g;
  *offset = (row.middle + row.step * beta - 1.5f * step) * g;
}

}  // namespace

KernelStatus EncodePageHeadShaped(const ShapedArgs& args, EncodeStats* stats) {
  const int d = args.head_dim, side = static_cast<int>(args.side);
  uint8_t* codes = args.page_head + side * CodesBytes(d);
  uint8_t* scales = args.page_head + ScaleOffset(d, args.side, !args.symmetric);
  std::memset(codes, 0, CodesBytes(d));
  for (int token = 0; token < kPageTokens; ++token) {
    Row row = {};
    row.d = d;
    bool clamped = false;
    for (int j = 0; j < d; ++j) {
      const float y = ToFloat(args.rows[token * args.row_stride + j]);
      if (!std::isfinite(y)) return KernelStatus::kNonFinite;
      row.y[j] = std::clamp(y, -kLargestFp16, kLargestFp16);
      clamped |= row.y[j] != y;
    }
    args.symmetric ? FitSymmetric(&row, args.widen) : FitAffine(&row, args.widen);
    const float inverse = 1.0f / row.step;
    for (int j = 0; j < d; ++j) row.x[j] = (row.y[j] - row.middle) * inverse;
    ChooseCodes(args, &row);
    float scale, offset;
    Refit(args, row, &scale, &offset);
    for (int j = 0; j < d; ++j) {
      const CodePosition at =
          args.side == Side::kKey ? KeyPosition(d, token, j) : ValuePosition(d, token, j);
      const int code = static_cast<int>(row.q[j] + 1.5f);
      codes[4 * at.word + at.bit / 8] |= static_cast<uint8_t>(code << at.bit % 8);
    }
    const Fp16 rounded[2] = {FloatToFp16(scale), FloatToFp16(offset)};
    for (int plane = 0; plane < (args.symmetric ? 1 : 2); ++plane)
      std::memcpy(scales + 2 * (plane * kPageTokens + MetaIndex(token)), &rounded[plane], 2);
    if (stats != nullptr) {
      ++stats->rows;
      stats->clamped_fp16 +=
          clamped || ExceedsFp16(scale) || (!args.symmetric && ExceedsFp16(offset));
    }
  }
  return KernelStatus::kOk;
}

}  // namespace oscarkv::kernels::ref
