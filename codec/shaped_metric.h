// The tables of the shaped encoder (kernels/q2_encode/shaped.h) from a metric W.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/q2_encode/shaped.h"

namespace oscarkv {

// Immutable; view() is valid as long as the object.
class ShapedTables {
 public:
  // w: [d, d] symmetric. kInvalidArgument: not finite, not symmetric, or not positive definite
  // (after a ridge of 1e-6 of its mean diagonal). Computed in float64 in a fixed order: the same
  // tables on every machine.
  static absl::StatusOr<ShapedTables> Create(const float* w, int d);
  kernels::ShapedMetric view() const;

 private:
  std::vector<float> feedback_, sweep_, weight_, ones_;
  float ones_norm_ = 0;
};

}  // namespace oscarkv
