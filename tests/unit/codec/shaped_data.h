// Metrics and rows that tests of the shaped encoder share.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/layout.h"
#include "kernels/types.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {

inline constexpr int kRows = kPageTokens;

// Numbers of make_shaped.py.
struct Numbers {
  uint64_t state;
  double Next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (static_cast<double>((state >> 33) % 257) - 128) / 32;
  }
};

// G^T G + 0.05 I, of trace d.
inline std::vector<float> Metric(int d, uint64_t seed = 7) {
  Numbers numbers{seed};
  std::vector<double> g(d * d), w(d * d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) g[i * d + j] = numbers.Next() * std::exp2(-i / 16.0);
  }
  double trace = 0;
  for (int k = 0; k < d; ++k) {
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) w[i * d + j] += g[k * d + i] * g[k * d + j];
    }
  }
  for (int i = 0; i < d; ++i) trace += w[i * d + i];
  std::vector<float> out(d * d);
  for (int i = 0; i < d * d; ++i) {
    const double diagonal = i % (d + 1) == 0 ? 0.05 : 0;
    out[i] = static_cast<float>((w[i] * d / trace + diagonal) / 1.05);
  }
  return out;
}

// Rows that are hard: constant, zero, huge, tiny, one outlier, ties.
inline std::vector<Bf16> HardRows(int d, uint32_t seed) {
  RandomData random(seed);
  std::vector<Bf16> rows = random.Bf16s(size_t{kRows} * d);
  const auto fill = [&](int t, float scale, float shift) {
    for (int c = 0; c < d; ++c) rows[t * d + c] = ToBf16(ToFloat(rows[t * d + c]) * scale + shift);
  };
  fill(3, 0, 1.25f);
  fill(4, 0, 0);
  fill(5, 1e30f, 0);
  fill(6, 1e-30f, 0);
  fill(7, 1e-3f, 400);
  fill(8, 2e4f, 0);
  rows[9 * d + 17] = ToBf16(3e4f);
  for (int c = 0; c < d; ++c) rows[10 * d + c] = ToBf16(static_cast<float>(c % 4));
  fill(11, 0, -0.0f);
  return rows;
}

}  // namespace oscarkv::kernels
