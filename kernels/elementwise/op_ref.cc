// The specification: float64 inside, one rounding at the end.
#include <cmath>

#include "kernels/elementwise/op_backends.h"

namespace oscarkv::kernels::ref {

void RmsNorm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* y) {
  for (int64_t i = 0; i < n; ++i, x += dim, y += dim) {
    double sum = 0;
    for (int64_t c = 0; c < dim; ++c) sum += double{x[c]} * x[c];
    const double factor = 1 / std::sqrt(sum / static_cast<double>(dim) + eps);
    for (int64_t c = 0; c < dim; ++c) y[c] = static_cast<float>(x[c] * factor * weight[c]);
  }
}

void SiluGate(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<float>(gate[i] / (1 + std::exp(-double{gate[i]})) * up[i]);
}

void AddInPlace(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void Rope(float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table) {
  for (int64_t i = 0; i < n; ++i) {
    const float* cos = cos_table + positions[i] * half_dim;
    const float* sin = sin_table + positions[i] * half_dim;
    for (int64_t h = 0; h < heads; ++h, x += head_dim) {
      for (int64_t c = 0; c < half_dim; ++c) {
        const double a = x[c], b = x[c + half_dim];
        x[c] = static_cast<float>(a * cos[c] - b * sin[c]);
        x[c + half_dim] = static_cast<float>(b * cos[c] + a * sin[c]);
      }
    }
  }
}

}  // namespace oscarkv::kernels::ref
