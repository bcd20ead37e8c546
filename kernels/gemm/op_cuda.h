// Matrix products on a GPU: up to 4 rows by a kernel of our own, more by cuBLASLt, which is opened
// at run time: the library loads without it, and CreateMatmul then says what is missing. Pointers
// are device memory.
#pragma once

#include <cstdint>

#include "kernels/elementwise/op_cuda.h"
#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

// Handle, workspace and chosen algorithms of one device; of one stream at a time.
class MatmulContext;

KernelStatus CreateMatmul(MatmulContext** context);
void DestroyMatmul(MatmulContext* context);  // null allowed

// Rows of x up to which a kernel of our own computes a product.
inline constexpr int kMaxFewRows = 4;

// y [m, n] = x [m, k] W^T, W [n, k], all row-major and dense; operands bf16, sums fp32. k a
// multiple of 8. `bias` [n] fp32 or null; y fp32 or bf16.
// gated (m up to kMaxFewRows, n even, no bias): y [m, n / 2] = SiluGate of that, without storing
// it.
struct MatmulArgs {
  const Bf16* x = nullptr;
  const Bf16* w = nullptr;      // read before kernels launched before have ended
  const float* bias = nullptr;  // with y of fp32 only
  MutableElements y;
  int64_t m = 0, n = 0, k = 0;
  bool gated = false;
};

// May be captured in a graph once the same (m, n, k, types) has run outside of one: the first call
// asks the library for an algorithm. With the same shape the result is the same bit for bit; a row
// may differ in its last bits between different m.
KernelStatus Matmul(MatmulContext* context, const MatmulArgs& args, Stream stream);

}  // namespace oscarkv::kernels::cuda
