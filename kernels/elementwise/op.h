// The row-wise operations between matrix products. All are fp32 in and out; n rows, dense.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace oscarkv::kernels {

// y[i, :] = x[i, :] / sqrt(mean(x[i, :]^2) + eps) * weight. In place allowed.
void RmsNorm(Backend backend, const float* x, const float* weight, float eps, int64_t n,
             int64_t dim, float* y);

// y = silu(gate) * up, elementwise over n values. In place allowed.
void SiluGate(Backend backend, const float* gate, const float* up, int64_t n, float* y);

// x += y over n values.
void AddInPlace(Backend backend, float* x, const float* y, int64_t n);

// Rotary embedding, Hugging Face's "rotate half" form, in place: x [n, heads, head_dim]; the first
// 2*half_dim channels of a head turn: (a, b) = (x[i], x[i + half_dim]) -> (a cos - b sin, b cos + a
// sin) with angle position * inv_freq[i], i < half_dim. cos/sin are given per position: tables [>=
// max position + 1][half_dim].
void Rope(Backend backend, float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table);

}  // namespace oscarkv::kernels
