// A matrix product y = x W^T (+ bias) whose output channels are cut into one slice per thread.
//
// All parallelism of the model is the Executor's, and each product runs on one OpenMP thread. With
// oneDNN's AVX-512 kernels a row of y is then the same bits whatever the number of rows and threads
// (measured; transformer_test.cc checks it). Older CPUs give this for equal numbers of rows only.
// In prefill the threads work on different rows, in decode on different slices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "kernels/types.h"

namespace oscarkv {

// What becomes of x in a product with bf16 operands.
enum class Operand {
  kRounded,  // x is rounded to bf16
  kSplit,    // x is the sum of two bf16 numbers (16 bits of mantissa), each multiplied: twice the
             // arithmetic, but the weights are read once, so that decode pays nothing
};

// Immutable after creation; Run may be called from several threads at once.
class Linear {
 public:
  Linear() = default;
  // `weight`: row-major [n, k], read during the call; `bias`: [n] or empty.
  Linear(const float* weight, int64_t n, int64_t k, std::vector<float> bias,
         kernels::Compute compute, Operand operand, int slices);

  // x: [m, k]; y: [m, n]. With an executor the slices run on its threads.
  void Run(const float* x, int64_t m, float* y, kernels::Executor* executor) const;

  int64_t n() const { return n_; }

 private:
  struct Slice {
    std::unique_ptr<kernels::PackedWeight> weight;
    int64_t first = 0;  // output channel
  };
  void RunSlice(const Slice& slice, const float* x, int64_t m, float* y) const;

  int64_t n_ = 0, k_ = 0;
  bool split_ = false;
  std::vector<float> bias_;
  std::vector<Slice> slices_;
};

}  // namespace oscarkv
