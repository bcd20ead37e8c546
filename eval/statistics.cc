#include "eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace oscarkv {

Interval WilsonInterval(int right, int n) {
  if (n == 0) return {0, 1};
  const double z = 1.959964, p = static_cast<double>(right) / n, f = 1 + z * z / n;
  const double middle = (p + z * z / (2 * n)) / f;
  const double half = z * std::sqrt(p * (1 - p) / n + z * z / (4.0 * n * n)) / f;
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

double StudentQuantile(int degrees) {
  constexpr double kFew[] = {12.7062, 4.3027, 3.1824, 2.7764};
  if (degrees <= 4) return kFew[std::max(degrees, 1) - 1];
  // Cornish and Fisher's expansion about the normal quantile: within 0.004 from five degrees on.
  const double z = 1.959964, n = degrees, z3 = z * z * z, z5 = z3 * z * z;
  return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n) +
         (3 * z5 * z * z + 19 * z5 + 17 * z3 - 15 * z) / (384 * n * n * n);
}

Interval JackknifeInterval(int n, const std::function<double(int left_out)>& statistic) {
  const double all = statistic(-1);
  if (n < 2) {
    const double unknown = std::numeric_limits<double>::infinity();
    return {all - unknown, all + unknown};
  }
  std::vector<double> without(n);
  double mean = 0;
  for (int i = 0; i < n; ++i) mean += (without[i] = statistic(i)) / n;
  double squares = 0;
  for (const double v : without) squares += (v - mean) * (v - mean);
  const double half = StudentQuantile(n - 1) * std::sqrt(squares * (n - 1) / n);
  return {all - half, all + half};
}

Interval BootstrapInterval(int n,
                           const std::function<double(const std::vector<int>& units)>& statistic) {
  constexpr int kResamples = 2000;
  const double unknown = std::numeric_limits<double>::infinity();
  if (n < 2) return {-unknown, unknown};
  std::vector<double> figures(kResamples);
  std::vector<int> units(n);
  uint64_t state = 0x9e3779b97f4a7c15ULL;
  for (double& figure : figures) {
    for (int& unit : units) {
      state ^= state << 13;  // xorshift64
      state ^= state >> 7;
      state ^= state << 17;
      unit = static_cast<int>((state >> 11) % static_cast<uint64_t>(n));
    }
    figure = statistic(units);
  }
  std::sort(figures.begin(), figures.end());
  return {figures[kResamples / 40], figures[kResamples - 1 - kResamples / 40]};
}

}  // namespace oscarkv
