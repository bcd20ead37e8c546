// The rotations of a model's K or V: read from RotationZoo files or made without data.
//
// A rotation M is [head_dim, head_dim], row-major fp32, orthogonal, applied to row vectors: x_rot =
// x * M. A file holds one side (K or V), one matrix per layer or one per (layer, kv head).
//
// Two forms of file are read, told apart by their first bytes, both untrusted:
//  - RotationZoo's `.pt` (torch.save: zip and pickle): {"format_version": 1 or 2, "layers": {int or
//  str: {"rotation": tensor}}};
//    version 1: [d, d] per layer; version 2: [d, d] or [kv_heads, d, d]. Everything else in it
//    ("eigenvalues", ...) is ignored. Tensors may be f32, f64, bf16 or f16, with any offset and
//    strides.
//  - safetensors: tensors "layers.N.rotation", N = 0 .. layers-1, [d, d] or [kv_heads, d, d], F32,
//  F64, BF16 or F16.
// Both are refused when a layer is missing or one too many, a shape is wrong, or a matrix is not
// finite or not orthogonal: max |M^T M - I| <= kOrthogonalTolerance. Tensors stored as bf16 get the
// error that rounding to bf16 can make on top (each entry is off by up to 2^-9 of itself, a sum of
// products of orthonormal columns by 2^-8).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/layout.h"

namespace oscarkv {

inline constexpr double kOrthogonalTolerance = 1e-3;
inline constexpr double kOrthogonalToleranceBf16 = 5e-3;
inline constexpr uint64_t kMaxRotationFileBytes = uint64_t{1} << 30;

// The rotations of all layers and kv heads of one side. Layers that share a matrix between heads
// keep it once.
class RotationSet {
 public:
  explicit RotationSet(const kernels::KvShape& shape);

  const kernels::KvShape& shape() const { return shape_; }
  // [head_dim, head_dim] row-major.
  const float* At(int layer, int kv_head) const {
    return matrices_.data() + index_[layer * shape_.num_kv_heads + kv_head];
  }

  // Sets the matrices of a layer, `heads` of them: 1 (for all kv heads) or num_kv_heads; each [d,
  // d]. kInvalidArgument: not finite, not orthogonal (names layer, head, value), or the layer was
  // set before.
  absl::Status SetLayer(int layer, int heads, absl::Span<const float> matrices,
                        double tolerance = kOrthogonalTolerance);
  // kInvalidArgument names the first layer that was not set.
  absl::Status CheckComplete() const;

 private:
  static constexpr size_t kUnset = SIZE_MAX;
  kernels::KvShape shape_;
  std::vector<float> matrices_;
  std::vector<size_t> index_;  // [layer][kv_head]: offset into matrices_
};

// Errors: kNotFound (no such file), kInvalidArgument (what is wrong in it, prefixed by the path),
// kUnavailable (reading failed).
absl::StatusOr<RotationSet> ReadRotations(const std::string& path, const kernels::KvShape& shape);
// The same from memory. head_dim may be any size here.
absl::StatusOr<RotationSet> ParseRotations(absl::Span<const uint8_t> file,
                                           const kernels::KvShape& shape);

// The data-free fallback: the same Sylvester-Hadamard matrix for all, H[i][j] = (-1)^popcount(i &
// j) / sqrt(d). head_dim: a power of two.
RotationSet HadamardRotations(const kernels::KvShape& shape);

}  // namespace oscarkv
