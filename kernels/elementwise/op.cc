#include "kernels/elementwise/op.h"

#include <cstdio>
#include <cstdlib>

#include "kernels/elementwise/op_backends.h"

namespace oscarkv::kernels {
namespace {

// These functions return nothing: asking them for a backend that this build lacks is a bug of the
// caller.
[[noreturn]] void NoSuchBackend(const char* op) {
  std::fprintf(stderr, "kernels: %s has no CUDA backend in this build\n", op);
  std::abort();
}

}  // namespace

void RmsNorm(Backend backend, const float* x, const float* weight, float eps, int64_t n,
             int64_t dim, float* y) {
  if (backend == Backend::kCuda) NoSuchBackend("RmsNorm");
  (backend == Backend::kRef ? ref::RmsNorm : cpu::RmsNorm)(x, weight, eps, n, dim, y);
}

void SiluGate(Backend backend, const float* gate, const float* up, int64_t n, float* y) {
  if (backend == Backend::kCuda) NoSuchBackend("SiluGate");
  (backend == Backend::kRef ? ref::SiluGate : cpu::SiluGate)(gate, up, n, y);
}

void AddInPlace(Backend backend, float* x, const float* y, int64_t n) {
  if (backend == Backend::kCuda) NoSuchBackend("AddInPlace");
  (backend == Backend::kRef ? ref::AddInPlace : cpu::AddInPlace)(x, y, n);
}

void Rope(Backend backend, float* x, int64_t n, int64_t heads, int64_t head_dim, int64_t half_dim,
          const int32_t* positions, const float* cos_table, const float* sin_table) {
  if (backend == Backend::kCuda) NoSuchBackend("Rope");
  (backend == Backend::kRef ? ref::Rope : cpu::Rope)(x, n, heads, head_dim, half_dim, positions,
                                                     cos_table, sin_table);
}

}  // namespace oscarkv::kernels
