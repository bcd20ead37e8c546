#include "codec/shaped_metric.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace oscarkv {
namespace {

constexpr double kRidge = 1e-6;
constexpr double kAsymmetry = 1e-4;  // of the mean diagonal: what rounding to fp32 may leave

}  // namespace

absl::StatusOr<ShapedTables> ShapedTables::Create(const float* w, int d) {
  double trace = 0;
  for (int i = 0; i < d * d; ++i) {
    if (!std::isfinite(w[i]))
      return absl::InvalidArgumentError(absl::StrCat("metric[", i / d, "][", i % d, "] is ", w[i]));
  }
  for (int i = 0; i < d; ++i) trace += w[i * d + i];
  const double mean = trace / d;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < i; ++j) {
      if (std::abs(double{w[i * d + j]} - w[j * d + i]) <= kAsymmetry * mean) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("metric is not symmetric: [%d][%d] is %g, [%d][%d] is %g", i, j,
                          w[i * d + j], j, i, w[j * d + i]));
    }
  }
  // L D L^T, column by column.
  std::vector<double> l(static_cast<size_t>(d) * d), weight(d);
  for (int j = 0; j < d; ++j) {
    double pivot = w[j * d + j] + kRidge * mean;
    for (int k = 0; k < j; ++k) pivot -= l[j * d + k] * l[j * d + k] * weight[k];
    if (!(pivot > 0) || !(w[j * d + j] > 0)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("metric is not positive definite: pivot %d is %.3g", j, pivot));
    }
    weight[j] = pivot;
    l[j * d + j] = 1;
    for (int i = j + 1; i < d; ++i) {
      double sum = (double{w[i * d + j]} + w[j * d + i]) / 2;
      for (int k = 0; k < j; ++k) sum -= l[i * d + k] * l[j * d + k] * weight[k];
      l[i * d + j] = sum / pivot;
    }
  }
  ShapedTables t;
  t.feedback_.resize(l.size());
  t.sweep_.resize(l.size());
  double norm = 0;
  for (int j = 0; j < d; ++j) {
    double ones = 0;
    for (int i = 0; i < d; ++i) {
      const double both = (double{w[i * d + j]} + w[j * d + i]) / 2;
      ones += both;
      if (i > j) t.feedback_[i * d + j] = static_cast<float>(l[i * d + j]);
      if (i != j) t.sweep_[i * d + j] = static_cast<float>(both / w[j * d + j]);
    }
    t.weight_.push_back(w[j * d + j]);
    t.ones_.push_back(static_cast<float>(ones));
    norm += ones;
  }
  t.ones_norm_ = static_cast<float>(norm);
  return t;
}

kernels::ShapedMetric ShapedTables::view() const {
  return {feedback_.data(), sweep_.data(), weight_.data(), ones_.data(), ones_norm_};
}

}  // namespace oscarkv
