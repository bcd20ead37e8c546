// Fits profiles shaped and shaped-sym to collected statistics.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "codec/shaped_file.h"
#include "eval/calibrate.h"

namespace oscarkv {

struct ShapedFitOptions {
  // Candidates; with several, each layer and side takes the pair of least damage on its sample.
  std::vector<double> t = {0.2};  // between whitening (0) and the geometric mean (0.5)
  std::vector<float> widen = {1.15f};
  float key_gain = 1, value_gain = 0.3f;
  int sweeps = 2;                         // of the encoder that the damage is measured with
  bool symmetric = false;                 // for profile shaped-sym
  kernels::Executor* executor = nullptr;  // for the layers; the result does not depend on it
};

struct ShapedFitResult {
  ShapedParameters parameters;
  std::vector<LayerSummary> summary;  // damage_before: profile oscar with Hadamard rotations
};
absl::StatusOr<ShapedFitResult> FitShapedProfile(const Collected& collected,
                                                 const ShapedFitOptions& options);

}  // namespace oscarkv
