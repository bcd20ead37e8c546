#include "eval/activation_stats.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "codec/fit.h"
#include "common/status_macros.h"
#include "eval/importance.h"

namespace oscarkv {
namespace {

constexpr int kRowsAtOnce = 256;  // converted to float64 at a time

// f(rows, x [rows, d] float64) over the rows [first, count) of `from`, `stride` floats apart.
template <class F>
void ForRows(const float* from, int64_t stride, int first, int count, int d, const F& f) {
  std::vector<double> x(static_cast<size_t>(kRowsAtOnce) * d);
  for (int r = first; r < count; r += kRowsAtOnce) {
    const int rows = std::min(kRowsAtOnce, count - r);
    for (int i = 0; i < rows; ++i) std::copy_n(from + (r + i) * stride, d, x.data() + i * d);
    f(r, rows, x.data());
  }
}

void Run(kernels::Executor* executor, int n, const std::function<void(int)>& f) {
  if (executor != nullptr) return executor->ParallelFor(n, f);
  for (int i = 0; i < n; ++i) f(i);
}

const float* RowsOf(const Transformer::LayerActivations& a, kernels::Side side, int head) {
  return (side == kernels::Side::kKey ? a.k : a.v) + head * a.head_stride;
}

// x [d], `stride` apart, as it would be `positions` later.
void Turn(const std::vector<float>& inv_freq, double positions, int64_t stride, double* x) {
  const int64_t half = static_cast<int64_t>(inv_freq.size());
  for (int64_t i = 0; i < half; ++i) {
    const double angle = positions * inv_freq[i], c = std::cos(angle), s = std::sin(angle);
    double &low = x[i * stride], &high = x[(half + i) * stride];
    const double turned = low * c - high * s;
    high = high * c + low * s;
    low = turned;
  }
}

}  // namespace

ActivationStats::ActivationStats(const kernels::KvShape& shape, int num_heads, int sample_rows,
                                 int64_t expected_tokens)
    : shape_(shape),
      num_heads_(num_heads),
      sample_rows_(sample_rows),
      sample_stride_(std::max<int64_t>(1, expected_tokens / std::max(1, sample_rows))),
      tokens_(shape.num_layers),
      weighted_tokens_(shape.num_layers),
      heads_(size_t{1} * shape.num_layers * shape.num_kv_heads) {
  const size_t d = shape.head_dim;
  for (Head& h : heads_) {
    h.qq.resize(d * d);
    h.weighted.resize(d * d);
    h.important_qq.resize(d * d);
    for (int side : {0, 1}) {
      h.important_rows[side].resize(d * d);
      h.important_sum[side].resize(d);
      h.rows[side].resize(d * d);
      h.sum[side].resize(d);
      h.sample[side].reserve(sample_rows * d);
    }
  }
}

size_t ActivationStats::MemoryBytes() const {
  const size_t d = shape_.head_dim;
  return heads_.size() * (8 * (7 * d * d + 4 * d) + 2 * 4 * sample_rows_ * d);
}

void ActivationStats::AddQueries(const Transformer::LayerActivations& a, int head, Head* to) const {
  const int d = shape_.head_dim, group = num_heads_ / shape_.num_kv_heads;
  for (int g = 0; g < group; ++g) {
    ForRows(a.q + (head * group + g) * d, int64_t{num_heads_} * d, kSinkTokens, a.tokens, d,
            [&](int, int rows, const double* x) {
              AddSecondMoment(x, nullptr, rows, d, to->qq.data());
            });
  }
}

void ActivationStats::AddRows(const Transformer::LayerActivations& a, int head, kernels::Side side,
                              int64_t before, Head* to) const {
  const int d = shape_.head_dim, s = static_cast<int>(side);
  const float* from = RowsOf(a, side, head);
  ForRows(from, d, kSinkTokens, a.tokens, d, [&](int, int rows, const double* x) {
    AddSecondMoment(x, nullptr, rows, d, to->rows[s].data());
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < d; ++c) to->sum[s][c] += x[r * d + c];
    }
  });
  for (int r = kSinkTokens; r < a.tokens; ++r) {
    const int64_t index = before + r - kSinkTokens;
    if (index % sample_stride_ != 0 ||
        to->sample[s].size() >= static_cast<size_t>(sample_rows_) * d)
      continue;
    to->sample[s].insert(to->sample[s].end(), from + int64_t{r} * d, from + int64_t{r + 1} * d);
  }
}

void ActivationStats::Add(int layer, const Transformer::LayerActivations& a,
                          kernels::Executor* executor) {
  if (a.tokens <= kSinkTokens) return;
  // A sum belongs to one task, so that its order does not depend on the threads.
  Run(executor, 3 * shape_.num_kv_heads, [&](int task) {
    const int head = task / 3;
    if (task % 3 == 0) return AddQueries(a, head, &At(layer, head));
    AddRows(a, head, task % 3 == 1 ? kernels::Side::kKey : kernels::Side::kValue, tokens_[layer],
            &At(layer, head));
  });
  tokens_[layer] += a.tokens - kSinkTokens;
}

void ActivationStats::AddWeighted(int layer, const Transformer::LayerActivations& a,
                                  kernels::Executor* executor) {
  if (a.tokens <= kSinkTokens) return;
  const int d = shape_.head_dim;
  Run(executor, shape_.num_kv_heads, [&](int head) {
    Head& h = At(layer, head);
    const std::vector<double> s = QuerySecondMoment(layer, head);
    std::vector<double> weights(a.tokens);
    ForRows(RowsOf(a, kernels::Side::kKey, head), d, kSinkTokens, a.tokens, d,
            [&](int first, int rows, const double* k) {
              for (int r = 0; r < rows; ++r, k += d) {
                double w = 0;
                for (int i = 0; i < d; ++i) {
                  double dot = 0;
                  for (int j = 0; j < d; ++j) dot += s[i * d + j] * k[j];
                  w += dot * k[i];
                }
                weights[first + r] = std::max(0.0, w);
                h.weight += weights[first + r];
              }
            });
    ForRows(RowsOf(a, kernels::Side::kValue, head), d, kSinkTokens, a.tokens, d,
            [&](int first, int rows, const double* v) {
              AddSecondMoment(v, weights.data() + first, rows, d, h.weighted.data());
            });
  });
  weighted_tokens_[layer] += a.tokens - kSinkTokens;
}

void ActivationStats::AddImportance(int layer, const Transformer::LayerActivations& a,
                                    const std::vector<std::vector<double>>& output_gram,
                                    kernels::Executor* executor) {
  Run(executor, shape_.num_kv_heads, [&](int head) {
    AddImportantHead(a, head, output_gram[layer * shape_.num_kv_heads + head], &At(layer, head));
  });
}

void ActivationStats::AddImportantHead(const Transformer::LayerActivations& a, int head,
                                       const std::vector<double>& output_gram, Head* to) const {
  const int d = shape_.head_dim, group = num_heads_ / shape_.num_kv_heads;
  const RowImportance weights =
      ImportanceOf(a, num_heads_, shape_.num_kv_heads, d, head, output_gram);
  for (int g = 0; g < group; ++g) {
    const double* w = weights.query.data() + size_t{1} * g * a.tokens;
    ForRows(a.q + (head * group + g) * d, int64_t{num_heads_} * d, kSinkTokens, a.tokens, d,
            [&](int first, int rows, const double* x) {
              AddSecondMoment(x, w + first, rows, d, to->important_qq.data());
            });
  }
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    const int s = static_cast<int>(side);
    const std::vector<double>& w = s == 0 ? weights.key : weights.value;
    ForRows(RowsOf(a, side, head), d, kSinkTokens, a.tokens, d,
            [&](int first, int rows, const double* x) {
              AddSecondMoment(x, w.data() + first, rows, d, to->important_rows[s].data());
              for (int r = 0; r < rows; ++r) {
                for (int c = 0; c < d; ++c) to->important_sum[s][c] += w[first + r] * x[r * d + c];
                to->importance[s] += w[first + r];
              }
            });
  }
}

std::vector<double> ActivationStats::QuerySecondMoment(int layer, int head) const {
  const int64_t group = num_heads_ / shape_.num_kv_heads;
  const auto rows = static_cast<double>(tokens_[layer] * group);
  return Symmetric(At(layer, head).qq, shape_.head_dim, rows > 0 ? 1 / rows : 0);
}

std::vector<double> ActivationStats::Mean(int layer, int head, kernels::Side side) const {
  std::vector<double> mean = At(layer, head).sum[static_cast<int>(side)];
  for (double& v : mean) v /= static_cast<double>(std::max<int64_t>(1, tokens_[layer]));
  return mean;
}

std::vector<double> ActivationStats::Covariance(int layer, int head, kernels::Side side) const {
  const int d = shape_.head_dim;
  const auto rows = static_cast<double>(std::max<int64_t>(1, tokens_[layer]));
  std::vector<double> s = Symmetric(At(layer, head).rows[static_cast<int>(side)], d, 1 / rows);
  const std::vector<double> mean = Mean(layer, head, side);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) s[i * d + j] -= mean[i] * mean[j];
  }
  return s;
}

void ActivationStats::SpreadOverPositions(std::vector<float> inv_freq, int step, int context) {
  inv_freq_ = std::move(inv_freq);
  step_ = step;
  starts_ = std::max(1, (context + step - 1) / step);
}

std::vector<double> ActivationStats::Spread(const std::vector<double>& v) const {
  if (starts_ == 1) return v;
  std::vector<double> mean(v.size());
  for (int start = 0; start < starts_; ++start) {
    std::vector<double> turned = v;
    Turn(inv_freq_, double{1} * start * step_, 1, turned.data());
    for (size_t i = 0; i < v.size(); ++i) mean[i] += Weight(start) * turned[i];
  }
  return mean;
}

std::vector<double> ActivationStats::SpreadMoment(const std::vector<double>& s) const {
  if (starts_ == 1) return s;
  const int64_t d = shape_.head_dim;
  std::vector<double> mean(s.size());
  for (int start = 0; start < starts_; ++start) {
    std::vector<double> turned = s;  // R S R^T: its columns, then its rows
    for (int64_t i = 0; i < d; ++i)
      Turn(inv_freq_, double{1} * start * step_, d, turned.data() + i);
    for (int64_t i = 0; i < d; ++i)
      Turn(inv_freq_, double{1} * start * step_, 1, turned.data() + i * d);
    for (size_t i = 0; i < s.size(); ++i) mean[i] += Weight(start) * turned[i];
  }
  return mean;
}

std::vector<double> ActivationStats::ImportantQueries(int layer, int head) const {
  const int d = shape_.head_dim;
  std::vector<double> plain = QuerySecondMoment(layer, head);
  const std::vector<double> important = Symmetric(At(layer, head).important_qq, d, 1);
  double plain_trace = 0, trace = 0;
  for (int i = 0; i < d; ++i) {
    plain_trace += plain[i * d + i];
    trace += important[i * d + i];
  }
  if (trace > 0) {
    for (int i = 0; i < d * d; ++i) plain[i] = (plain[i] + important[i] * plain_trace / trace) / 2;
  }
  return SpreadMoment(plain);
}

std::vector<double> ActivationStats::ImportantMean(int layer, int head, kernels::Side side) const {
  const Head& h = At(layer, head);
  const int s = static_cast<int>(side);
  std::vector<double> mean = Mean(layer, head, side);
  if (h.importance[s] > 0) {
    mean = h.important_sum[s];
    for (double& v : mean) v /= h.importance[s];
  }
  return side == kernels::Side::kKey ? Spread(mean) : mean;
}

std::vector<double> ActivationStats::ImportantCovariance(int layer, int head,
                                                         kernels::Side side) const {
  const int d = shape_.head_dim, i_side = static_cast<int>(side);
  const Head& h = At(layer, head);
  const bool weighted = h.importance[i_side] > 0;
  const double rows =
      weighted ? h.importance[i_side] : static_cast<double>(std::max<int64_t>(1, tokens_[layer]));
  std::vector<double> s =
      Symmetric(weighted ? h.important_rows[i_side] : h.rows[i_side], d, 1 / rows);
  if (side == kernels::Side::kKey) s = SpreadMoment(s);
  const std::vector<double> mean = ImportantMean(layer, head, side);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) s[i * d + j] -= mean[i] * mean[j];
  }
  return s;
}

std::vector<double> ActivationStats::WeightedValues(int layer, int head) const {
  const Head& h = At(layer, head);
  return Symmetric(h.weighted, shape_.head_dim, h.weight > 0 ? 1 / h.weight : 0);
}

void ActivationStats::Save(TensorFileWriter* to) const {
  const int64_t d = shape_.head_dim;
  for (size_t i = 0; i < heads_.size(); ++i) {
    const Head& h = heads_[i];
    const std::string prefix = absl::StrCat("heads.", i, ".");
    to->AddF64(prefix + "qq", {d, d}, h.qq);
    to->AddF64(prefix + "weighted", {d, d}, h.weighted);
    to->AddF64(prefix + "weight", {1}, {h.weight});
    to->AddF64(prefix + "important_qq", {d, d}, h.important_qq);
    to->AddF64(prefix + "importance", {2}, h.importance);
    for (int side : {0, 1}) {
      const std::string name = absl::StrCat(prefix, side == 0 ? "k." : "v.");
      to->AddF64(name + "rows", {d, d}, h.rows[side]);
      to->AddF64(name + "sum", {d}, h.sum[side]);
      to->AddF64(name + "important_rows", {d, d}, h.important_rows[side]);
      to->AddF64(name + "important_sum", {d}, h.important_sum[side]);
      to->AddF32(name + "sample", {static_cast<int64_t>(h.sample[side].size()) / d, d},
                 h.sample[side]);
    }
  }
  const int64_t layers = shape_.num_layers;
  const std::vector<double> first(tokens_.begin(), tokens_.end()),
      second(weighted_tokens_.begin(), weighted_tokens_.end());
  to->AddF64("tokens", {layers}, first);
  to->AddF64("weighted_tokens", {layers}, second);
}

absl::Status ActivationStats::Restore(const TensorFile& from) {
  const int64_t d = shape_.head_dim, layers = shape_.num_layers;
  ASSIGN_OR_RETURN(const std::vector<double> first, from.ReadF64("tokens", {layers}));
  ASSIGN_OR_RETURN(const std::vector<double> second, from.ReadF64("weighted_tokens", {layers}));
  std::vector<Head> heads(heads_.size());
  for (size_t i = 0; i < heads.size(); ++i) {
    Head& h = heads[i];
    const std::string prefix = absl::StrCat("heads.", i, ".");
    ASSIGN_OR_RETURN(h.qq, from.ReadF64(prefix + "qq", {d, d}));
    ASSIGN_OR_RETURN(h.weighted, from.ReadF64(prefix + "weighted", {d, d}));
    ASSIGN_OR_RETURN(const std::vector<double> weight, from.ReadF64(prefix + "weight", {1}));
    h.weight = weight[0];
    ASSIGN_OR_RETURN(h.important_qq, from.ReadF64(prefix + "important_qq", {d, d}));
    ASSIGN_OR_RETURN(const std::vector<double> importance,
                     from.ReadF64(prefix + "importance", {2}));
    std::copy_n(importance.begin(), 2, h.importance);
    for (int side : {0, 1}) {
      const std::string name = absl::StrCat(prefix, side == 0 ? "k." : "v.");
      ASSIGN_OR_RETURN(h.rows[side], from.ReadF64(name + "rows", {d, d}));
      ASSIGN_OR_RETURN(h.sum[side], from.ReadF64(name + "sum", {d}));
      ASSIGN_OR_RETURN(h.important_rows[side], from.ReadF64(name + "important_rows", {d, d}));
      ASSIGN_OR_RETURN(h.important_sum[side], from.ReadF64(name + "important_sum", {d}));
      ASSIGN_OR_RETURN(const FileTensor sample, from.Find(name + "sample"));
      const int64_t rows = sample.elements() / d;
      if (rows > sample_rows_) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, "sample has ", rows, " rows, at most ", sample_rows_, " are kept"));
      }
      ASSIGN_OR_RETURN(h.sample[side], from.ReadF32(name + "sample", {rows, d}));
    }
  }
  heads_ = std::move(heads);
  for (int64_t l = 0; l < layers; ++l) {
    tokens_[l] = static_cast<int64_t>(first[l]);
    weighted_tokens_[l] = static_cast<int64_t>(second[l]);
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
