// Random inputs and error norms for the kernel tests. Seeds are fixed: a test does the same on
// every run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/types.h"

namespace oscarkv::kernels {

class RandomData {
 public:
  explicit RandomData(uint32_t seed) : rng_(seed) {}

  std::vector<float> Floats(size_t n, float sigma = 1) {
    std::normal_distribution<float> normal(0, sigma);
    std::vector<float> x(n);
    for (float& v : x) v = normal(rng_);
    return x;
  }
  std::vector<Bf16> Bf16s(size_t n, float sigma = 1) {
    std::vector<Bf16> x(n);
    const std::vector<float> values = Floats(n, sigma);
    for (size_t i = 0; i < n; ++i) x[i] = ToBf16(values[i]);
    return x;
  }
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  std::mt19937& rng() { return rng_; }

 private:
  std::mt19937 rng_;
};

inline std::vector<float> Poisoned(size_t n) {
  return std::vector<float>(n, std::numeric_limits<float>::quiet_NaN());
}

// ||a - b|| / ||b|| over n values; Inf if `a` holds anything that is not finite.
inline double RelativeError(const float* a, const float* b, size_t n) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(a[i])) return std::numeric_limits<double>::infinity();
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

// The largest of the rows' relative errors.
inline double WorstRowError(const std::vector<float>& a, const std::vector<float>& b,
                            size_t width) {
  double worst = 0;
  for (size_t i = 0; i + width <= a.size(); i += width) {
    worst = std::max(worst, RelativeError(a.data() + i, b.data() + i, width));
  }
  return worst;
}

}  // namespace oscarkv::kernels
