// What the SIMD code and its caller exchange; internal.
#pragma once

#include "kernels/layout.h"

namespace oscarkv::kernels {

inline constexpr int kMaxHeadDim = 128;

// A piece of the work: pages and bf16 blocks (positions in page_ids and bf16_ids) of one sequence
// for one kv head. Not empty.
struct Part {
  int seq, head;
  int page_begin, page_end;
  int block_begin, block_end;
};

// Its result for each query head of the group: softmax weights relative to 2^max, their sum, and
// the weighted sum of the values.
struct Partial {
  float max[kMaxGroup];  // base-2 logarithm
  float sum[kMaxGroup];
  alignas(64) float out[kMaxGroup][kMaxHeadDim];
};

}  // namespace oscarkv::kernels
