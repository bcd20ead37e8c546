// The file of profiles `shaped` and `shaped-sym`: what calibration fitted, for all layers and both
// sides (K, V).
//
// safetensors with, per layer N and side ("key", "value"), in fp32, or in fp16 where that holds the
// values exactly (calibration rounds matrices to fp16, which halves the file and costs nothing that
// can be measured: what undoes a transform is computed from the rounded one):
//   layers.N.SIDE.transform [kv_heads, d, d]  M: a row x becomes y = (x - mean) M
//   layers.N.SIDE.mean      [kv_heads, d]
//   layers.N.SIDE.metric    [kv_heads, d, d]  W: what an error n of y costs is n W n^T, up to scale
//   layers.N.SIDE.choice    [2]               widen, gain (kernels/q2_encode/shaped.h)
// and metadata: format "oscarkv.codec", format_version "1", profile "shaped" or "shaped-sym",
// layers, kv_heads, head_dim; the rest is for people. A fit for `shaped` serves `shaped-sym`, too.
// Files are untrusted.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/layout.h"

namespace oscarkv {

struct ShapedSide {
  std::vector<float> transform, metric;  // [kv_heads][d][d]
  std::vector<float> mean;               // [kv_heads][d]
  float widen = 1.15f, gain = 1;
};

struct ShapedParameters {
  kernels::KvShape shape;         // the model's
  std::vector<ShapedSide> sides;  // [layer][K, V]
  bool symmetric = false;         // fitted for profile shaped-sym
  std::map<std::string, std::string> metadata;
  const ShapedSide& at(int layer, kernels::Side side) const {
    return sides[2 * layer + static_cast<int>(side)];
  }
};

// Sizes must fit the shape.
std::string WriteShapedFile(const ShapedParameters& parameters);
// kInvalidArgument: not such a file, another shape than `shape`, or values that are not finite or
// out of bounds. Whether matrices can be inverted is found out by whoever uses them.
absl::StatusOr<ShapedParameters> ParseShapedFile(absl::Span<const uint8_t> file,
                                                 const kernels::KvShape& shape);
// Errors are prefixed by the path; kNotFound, kUnavailable.
absl::StatusOr<ShapedParameters> ReadShapedFile(const std::string& path,
                                                const kernels::KvShape& shape);

}  // namespace oscarkv
