// A matrix product y = x W^T (+ bias) whose output channels are cut into one slice per thread.
//
// All parallelism of the model is the Executor's, and each product runs on one OpenMP thread: a row
// of y is then the same bits whatever the number of rows and threads (measured for oneDNN's
// kernels; transformer_test.cc checks it). In prefill the threads work on different rows, in decode
// on different slices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "kernels/types.h"

namespace oscarkv {

// Immutable after creation; Run may be called from several threads at once.
class Linear {
 public:
  Linear() = default;
  // `weight`: row-major [n, k], read during the call; `bias`: [n] or empty.
  Linear(const float* weight, int64_t n, int64_t k, std::vector<float> bias,
         kernels::Compute compute, int slices);

  // x: [m, k]; y: [m, n]. With an executor the slices run on its threads.
  void Run(const float* x, int64_t m, float* y, kernels::Executor* executor) const;

  int64_t n() const { return n_; }

 private:
  struct Slice {
    std::unique_ptr<kernels::PackedWeight> weight;
    int64_t first = 0;  // output channel
  };
  void RunSlice(const Slice& slice, const float* x, int64_t m, float* y) const;

  int64_t n_ = 0;
  std::vector<float> bias_;
  std::vector<Slice> slices_;
};

}  // namespace oscarkv
