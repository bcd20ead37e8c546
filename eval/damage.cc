#include "eval/damage.h"

#include <algorithm>

#include "kernels/layout.h"

namespace oscarkv {
namespace {

// x metric x^T.
double Energy(const double* x, const std::vector<double>& metric, int d) {
  double energy = 0;
  for (int i = 0; i < d; ++i) {
    double dot = 0;
    for (int j = 0; j < d; ++j) dot += metric[i * d + j] * x[j];
    energy += dot * x[i];
  }
  return energy;
}

}  // namespace

double MeasureDamage(absl::Span<const float> rows, int d, const DamageTransform& transform,
                     const PageRoundTrip& round_trip) {
  constexpr int kRows = kernels::kPageTokens;
  const int n = static_cast<int>(rows.size()) / d;
  if (n == 0) return 0;
  std::vector<double> y(static_cast<size_t>(kRows) * d), error(d);
  std::vector<kernels::Bf16> page(y.size());
  std::vector<float> decoded(y.size());
  // (mean - centre) M: from y to a row about its centre.
  std::vector<double> shift(d);
  for (int i = 0; !transform.centre.empty() && i < d; ++i) {
    for (int c = 0; c < d; ++c)
      shift[c] += (transform.mean[i] - transform.centre[i]) * transform.matrix[i * d + c];
  }
  double damage = 0, energy = 0;
  for (int first = 0; first < n; first += kRows) {
    for (int r = 0; r < kRows; ++r) {
      const float* x = rows.data() + static_cast<size_t>((first + r) % n) * d;
      for (int c = 0; c < d; ++c) {
        double sum = 0;
        for (int i = 0; i < d; ++i) sum += (x[i] - transform.mean[i]) * transform.matrix[i * d + c];
        y[r * d + c] = sum;
        page[r * d + c] = kernels::ToBf16(static_cast<float>(sum));
      }
    }
    round_trip(page.data(), decoded.data());
    for (int r = 0; r < std::min(kRows, n - first); ++r) {
      for (int c = 0; c < d; ++c) error[c] = decoded[r * d + c] - y[r * d + c];
      damage += Energy(error.data(), transform.metric, d);
      for (int c = 0; c < d; ++c) y[r * d + c] += shift[c];
      energy += Energy(y.data() + r * d, transform.metric, d);
    }
  }
  return energy > 0 ? damage / energy : 0;
}

std::vector<double> Congruence(const std::vector<double>& t, const std::vector<double>& s, int d) {
  const auto multiply = [d](const std::vector<double>& a, bool transposed,
                            const std::vector<double>& b) {
    std::vector<double> c(size_t{1} * d * d);
    for (int i = 0; i < d; ++i) {
      for (int k = 0; k < d; ++k) {
        const double v = transposed ? a[k * d + i] : a[i * d + k];
        for (int j = 0; j < d; ++j) c[i * d + j] += v * b[k * d + j];
      }
    }
    return c;
  };
  return multiply(t, true, multiply(s, false, t));
}

}  // namespace oscarkv
