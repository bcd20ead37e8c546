#include "model/linear.h"

#include <algorithm>
#include <cstring>

namespace oscarkv {
namespace {

// Slices begin at multiples of this (the widest register block of the products), and narrower
// weights are not cut.
constexpr int64_t kSliceChannels = 64;

// Rows 0..m-1 of out: x in bf16; rows m..2m-1: what that lacks, itself to be rounded to bf16 by the
// product. count = m * k.
void Split(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float high = kernels::ToFloat(kernels::ToBf16(x[i]));
    out[i] = high;
    out[count + i] = x[i] - high;  // exact
  }
}

}  // namespace

Linear::Linear(const float* weight, int64_t n, int64_t k, std::vector<float> bias,
               kernels::Compute compute, Operand operand, int slices)
    : n_(n),
      k_(k),
      split_(compute == kernels::Compute::kBf16 && operand == Operand::kSplit),
      bias_(std::move(bias)) {
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
  thread_local std::vector<float> halves;
  if (split_) {
    halves.resize(2 * m * k_);
    Split(x, m * k_, halves.data());
    x = halves.data();
  }
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
  if (!split_ && (m == 1 || width == n_)) {
    slice.weight->Run(x, m, bias, y + slice.first);
    return;
  }
  // A product's output is dense, this slice's place in y is not.
  thread_local std::vector<float> dense;
  dense.resize((split_ ? 2 : 1) * m * width);
  slice.weight->Run(x, split_ ? 2 * m : m, split_ ? nullptr : bias, dense.data());
  for (int64_t i = 0; i < m; ++i) {
    const float* from = dense.data() + i * width;
    float* to = y + i * n_ + slice.first;
    std::memcpy(to, from, width * sizeof(float));
    if (!split_) continue;
    const float* rest = from + m * width;
    for (int64_t c = 0; c < width; ++c) to[c] += rest[c];
    for (int64_t c = 0; bias != nullptr && c < width; ++c) to[c] += bias[c];
  }
}

}  // namespace oscarkv
