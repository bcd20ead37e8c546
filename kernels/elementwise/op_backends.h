// The implementations behind op.h; internal.
#pragma once

#include <cstdint>

namespace oscarkv::kernels {
namespace ref {
void RmsNorm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* y);
void SiluGate(const float* gate, const float* up, int64_t n, float* y);
void AddInPlace(float* x, const float* y, int64_t n);
void Rope(float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table);
}  // namespace ref
namespace cpu {
void RmsNorm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* y);
void SiluGate(const float* gate, const float* up, int64_t n, float* y);
void AddInPlace(float* x, const float* y, int64_t n);
void Rope(float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table);
}  // namespace cpu
}  // namespace oscarkv::kernels
