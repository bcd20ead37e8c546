// y = x W^T (+ bias) with a weight packed once; oneDNN on the CPU.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/types.h"

namespace oscarkv::kernels {

enum class Compute { kFp32, kBf16 };  // operand type of the products; accumulation is fp32 in both

// True where the CPU multiplies bf16 natively (AVX512_BF16 or AMX): elsewhere kBf16 is slower than
// kFp32.
bool HasNativeBf16();

// A weight [n, k] (Hugging Face's orientation: y = x W^T) in the layout that the library likes
// best. Immutable after creation; Run may be called from several threads at once.
class PackedWeight {
 public:
  // `weight`: row-major [n, k] fp32, read during the call only. For kBf16 it is rounded to bf16.
  static std::unique_ptr<PackedWeight> Create(const float* weight, int64_t n, int64_t k,
                                              Compute compute);
  ~PackedWeight();

  // x: [m, k] fp32 dense (rounded to bf16 inside for kBf16); y: [m, n] fp32 dense. bias: [n] or
  // null.
  void Run(const float* x, int64_t m, const float* bias, float* y) const;

  int64_t n() const;
  int64_t k() const;

 private:
  struct Impl;
  explicit PackedWeight(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Sets the number of OpenMP threads that oneDNN uses in this process (1 wherever several busy
// processes share the cores).
void SetGemmThreads(int n);

}  // namespace oscarkv::kernels
