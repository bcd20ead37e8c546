// The damage that quantisation does to a sample of rows, in the metric of what consumes them.
#pragma once

#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/types.h"

namespace oscarkv {

// One page of rows: bf16 [64][d] to what decoding their codes gives, [64][d].
using PageRoundTrip = std::function<void(const kernels::Bf16* rows, float* decoded)>;

// y = (x - mean) M for row vectors: M and `metric` [d, d], mean [d]. `metric` is that of an error
// of y: e metric e^T.
struct DamageTransform {
  std::vector<double> matrix, mean, metric;
  std::vector<double> centre = {};  // of the rows, where `mean` is not: energy is counted about it
};

// sum of e metric e^T over the energy: the sum of z metric z^T, z = (x - centre) M, over the
// sample's rows [n][d] cut into pages (the last one is filled up with its own first rows). Both in
// the codec's space, where a metric A^-T S A^-1 makes them those of the model's; 0 for an empty
// sample.
double MeasureDamage(absl::Span<const float> rows, int d, const DamageTransform& transform,
                     const PageRoundTrip& round_trip);

// T^T S T, all [d, d].
std::vector<double> Congruence(const std::vector<double>& t, const std::vector<double>& s, int d);

}  // namespace oscarkv
