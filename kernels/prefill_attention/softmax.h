// One row of one step of the online softmax; internal.
#pragma once

#include <cstdint>

#include "kernels/prefill_attention/op.h"

namespace oscarkv::kernels {

struct SoftmaxState {
  float max;  // of scale * score so far, in the log2 domain; -inf before the first step
  float sum;  // of 2^(scale * score - max)
};

// weights[i] = 2^(scale_log2 * scores[i] - max') for i < valid, rounded to `type`; 0 for valid <= i
// < n. valid >= 1. Updates *state and returns the factor 2^(max - max') by which what was
// accumulated before must be multiplied. `sum` adds up the rounded weights, so that the outputs
// stay convex combinations of the values.
float SoftmaxStep(const float* scores, int valid, int n, float scale_log2, KvType type,
                  void* weights, SoftmaxState* state);

// x *= factor over n values.
void ScaleRow(float* x, int64_t n, float factor);

}  // namespace oscarkv::kernels
