// The row-wise operations of a decode step on a GPU: op.h's, fused where that saves a pass, and the
// two ends of a step. Arithmetic is fp32; vectors that matrix products read or write may be bf16.
// Every pointer is device memory; nothing allocates, waits or reads on the host.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

enum class ElementType { kFloat32, kBf16 };
struct Elements {
  const void* data = nullptr;
  ElementType type = ElementType::kFloat32;
};
struct MutableElements {
  void* data = nullptr;
  ElementType type = ElementType::kFloat32;
};

// x += delta (if it has data), then y = RMSNorm(x) as in op.h. x, delta, y: [n, dim] dense; x fp32.
// y may be null: only the addition. `rest` (or null; with y of bf16): what y lost by rounding, as
// bf16: y + rest has 16 bits of mantissa.
KernelStatus AddRmsNorm(float* x, Elements delta, const float* weight, float eps, int64_t n,
                        int64_t dim, MutableElements y, Bf16* rest, Stream stream);

// Pseudo-random numbers, the same for the same seed: uniform in [-range, range).
KernelStatus FillUniform(MutableElements y, int64_t n, float range, uint64_t seed, Stream stream);
// Page-heads of random codes; of both sides scale 1 and offset -1.5 times a random factor in [0.5,
// 1.5). bytes: n page-heads of head_dim, with offset planes or without. For benchmarks.
KernelStatus FillPages(uint8_t* bytes, int64_t n, int head_dim, bool offsets, uint64_t seed,
                       Stream stream);

// y[i, c] = silu(gate_up[i, c]) * gate_up[i, width + c]; gate_up [n, 2 width], y [n, width].
KernelStatus SiluGate(Elements gate_up, int64_t n, int64_t width, MutableElements y, Stream stream);

// x[i, :] = table[tokens[i], :] in fp32. tokens[i] outside [0, rows): zeros.
KernelStatus Embed(Elements table, int64_t rows, int64_t dim, const int32_t* tokens, int64_t n,
                   float* x, Stream stream);

// token[i] = the index of the largest of logits[i, 0..vocab), the smallest such; NaN counts as
// minus infinity; -1 if nothing is above minus infinity. As sampling at temperature 0.
KernelStatus ArgMax(const float* logits, int64_t n, int64_t vocab, int32_t* token, Stream stream);

}  // namespace oscarkv::kernels::cuda
