// C = A B (+ C) (+ bias) through oneDNN's matmul; internal to this room, the only place that
// includes its headers is matmul.cc.
//
// A is dense row-major [m, k], C dense row-major [m, n] of fp32, B is packed beforehand in a layout
// that depends on (n, k) and the operand type but not on m. Primitives are made once per shape and
// kept in a bounded process-wide cache. All is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/gemm/gemm.h"

namespace oscarkv::kernels {

// False where the library has no bf16 products at all (no AVX-512): operands rounded to bf16 are
// then multiplied as fp32.
bool LibraryHasBf16();

class Packer {
 public:
  struct Key {
    int64_t n, k;
    Compute compute;     // element type of the packed operand
    bool source_is_n_k;  // source is row-major [n, k] (a weight, or keys for Q K^T); else row-major
                         // [k, n]
    bool source_bf16;    // else fp32
    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 misreads the default.
    auto operator<=>(const Key&) const = default;
  };
  static std::shared_ptr<const Packer> Get(const Key& key);
  virtual ~Packer() = default;
  virtual size_t bytes() const = 0;
  virtual void Run(const void* source, void* packed) const = 0;
};

class Matmul {
 public:
  struct Key {
    int64_t m, n, k;
    Compute compute;
    bool accumulate;  // C += A B
    bool bias;
    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 misreads the default.
    auto operator<=>(const Key&) const = default;
  };
  static std::shared_ptr<const Matmul> Get(const Key& key);
  virtual ~Matmul() = default;
  // `bias` is read only if the key says so. Runs on as many OpenMP threads as were set when the
  // primitive was made.
  virtual void Run(const void* a, const void* packed, const float* bias, float* c) const = 0;
};

// Sets the calling thread's number of OpenMP threads, and puts back the old one. OpenMP keeps this
// number per thread: what one thread sets, a thread started later does not see; hence every entry
// of this room sets it for itself.
class ScopedOmpThreads {
 public:
  explicit ScopedOmpThreads(int n);
  ~ScopedOmpThreads();
  ScopedOmpThreads(const ScopedOmpThreads&) = delete;
  ScopedOmpThreads& operator=(const ScopedOmpThreads&) = delete;

 private:
  int old_;
  bool changed_;
};

// What SetGemmThreads said; before that OpenMP's own default.
int GemmThreads();

}  // namespace oscarkv::kernels
