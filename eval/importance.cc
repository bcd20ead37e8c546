#include "eval/importance.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/gemm/gemm.h"
#include "model/kv_pool.h"

namespace oscarkv {
namespace {

constexpr int kStride = 4, kQueriesAtOnce = 64;

using kernels::PackedWeight;

std::unique_ptr<PackedWeight> Pack(const float* w, int64_t n, int64_t k) {
  return PackedWeight::Create(w, n, k, kernels::Compute::kFp32);
}

float Dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The matrices of one kv head that are multiplied with every query.
struct HeadMatrices {
  HeadMatrices(const float* k, const float* v, int tokens, int d, const std::vector<double>& gram)
      : keys(Pack(k, tokens, d)), squares(tokens) {
    std::vector<float> transposed(size_t{1} * d * tokens), g(gram.begin(), gram.end());
    for (int i = 0; i < tokens; ++i) {
      for (int c = 0; c < d; ++c) transposed[size_t{1} * c * tokens + i] = v[size_t{1} * i * d + c];
    }
    values = Pack(transposed.data(), d, tokens);
    metric = Pack(g.data(), d, d);  // symmetric
    std::vector<float> weighed(size_t{1} * tokens * d);
    metric->Run(v, tokens, nullptr, weighed.data());
    for (int i = 0; i < tokens; ++i)
      squares[i] = Dot(v + size_t{1} * i * d, weighed.data() + size_t{1} * i * d, d);
    weighed_values = Pack(weighed.data(), tokens, d);
  }
  std::unique_ptr<PackedWeight> keys, values, metric, weighed_values;
  std::vector<float> squares;  // |v_i|^2 in the metric
};

// softmax(s / sqrt(d)) of [0, end) in place, zero behind.
void Softmax(float* s, int end, int tokens, int d) {
  const float scale = 1 / std::sqrt(static_cast<float>(d));
  const float top = *std::max_element(s, s + end);
  double sum = 0;
  for (int i = 0; i < end; ++i) sum += s[i] = std::exp((s[i] - top) * scale);
  const auto inverse = static_cast<float>(1 / sum);
  for (int i = 0; i < end; ++i) s[i] *= inverse;
  std::fill(s + end, s + tokens, 0.0f);
}

}  // namespace

RowImportance ImportanceOf(const Transformer::LayerActivations& a, int num_heads, int num_kv_heads,
                           int d, int head, const std::vector<double>& output_gram) {
  const int tokens = a.tokens, group = num_heads / num_kv_heads;
  RowImportance out;
  out.key.resize(tokens);
  out.value.resize(tokens);
  out.query.resize(size_t{1} * group * tokens);
  const HeadMatrices m(a.k + head * a.head_stride, a.v + head * a.head_stride, tokens, d,
                       output_gram);
  std::vector<float> q(size_t{1} * kQueriesAtOnce * d), o(q.size()), weighed(q.size());
  std::vector<float> p(size_t{1} * kQueriesAtOnce * tokens), cross(p.size());
  // The first query that reads a row as codes.
  constexpr int kFirst = (kSinkBlocks + kWindowBlocks + 1) * kBlockTokens;
  for (int g = 0; g < group; ++g) {
    for (int first = kFirst; first < tokens; first += kQueriesAtOnce * kStride) {
      const int n = std::min(kQueriesAtOnce, (tokens - first + kStride - 1) / kStride);
      for (int r = 0; r < n; ++r) {
        const int64_t position = first + int64_t{r} * kStride;
        std::copy_n(a.q + (position * num_heads + head * group + g) * d, d, q.begin() + r * d);
      }
      m.keys->Run(q.data(), n, nullptr, p.data());
      for (int r = 0; r < n; ++r)
        Softmax(p.data() + size_t{1} * r * tokens, first + r * kStride + 1, tokens, d);
      m.values->Run(p.data(), n, nullptr, o.data());
      m.metric->Run(o.data(), n, nullptr, weighed.data());
      m.weighed_values->Run(o.data(), n, nullptr, cross.data());
      for (int r = 0; r < n; ++r) {
        const int position = first + r * kStride;
        const float *pr = p.data() + size_t{1} * r * tokens,
                    *cr = cross.data() + size_t{1} * r * tokens;
        const float oo = Dot(o.data() + r * d, weighed.data() + r * d, d);
        double sum = 0;
        for (int i = kSinkBlocks * kBlockTokens; i < FirstWindowBlock(position) * kBlockTokens;
             ++i) {
          const float square = pr[i] * pr[i];
          const float moved = square * std::max(0.0f, m.squares[i] - 2 * cr[i] + oo);
          out.key[i] += moved;
          out.value[i] += square;
          sum += moved;
        }
        out.query[size_t{1} * g * tokens + position] = sum;
      }
    }
  }
  for (auto* v : {&out.key, &out.value}) {
    for (double& w : *v) w = std::sqrt(w);
  }
  return out;
}

}  // namespace oscarkv
