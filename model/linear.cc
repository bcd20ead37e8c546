#include "model/linear.h"

#include <algorithm>
#include <cstring>

namespace oscarkv {
namespace {

// Slices begin at multiples of this (the widest register block of the products), and narrower
// weights are not cut.
constexpr int64_t kSliceChannels = 64;

}  // namespace

Linear::Linear(const float* weight, int64_t n, int64_t k, std::vector<float> bias,
               kernels::Compute compute, int slices)
    : n_(n), bias_(std::move(bias)) {
  const int64_t blocks = (n + kSliceChannels - 1) / kSliceChannels;
  const int64_t count = std::clamp<int64_t>(slices, 1, blocks);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = blocks * i / count * kSliceChannels;
    const int64_t end = std::min(n, blocks * (i + 1) / count * kSliceChannels);
    slices_.push_back(
        {kernels::PackedWeight::Create(weight + first * k, end - first, k, compute), first});
  }
}

void Linear::Run(const float* x, int64_t m, float* y, kernels::Executor* executor) const {
  if (executor == nullptr || slices_.size() == 1) {
    for (const Slice& slice : slices_) RunSlice(slice, x, m, y);
    return;
  }
  executor->ParallelFor(static_cast<int>(slices_.size()),
                        [&](int i) { RunSlice(slices_[i], x, m, y); });
}

void Linear::RunSlice(const Slice& slice, const float* x, int64_t m, float* y) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data() + slice.first;
  const int64_t width = slice.weight->n();
  if (m == 1 || width == n_) {
    slice.weight->Run(x, m, bias, y + slice.first);
    return;
  }
  // A product's output is dense, this slice's place in y is not.
  thread_local std::vector<float> dense;
  dense.resize(m * width);
  slice.weight->Run(x, m, bias, dense.data());
  for (int64_t i = 0; i < m; ++i) {
    std::memcpy(y + i * n_ + slice.first, dense.data() + i * width, width * sizeof(float));
  }
}

}  // namespace oscarkv
