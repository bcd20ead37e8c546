// Cosine and sine of every position's rotary angles, as kernels::Rope wants them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"

namespace oscarkv {

// The angles' speeds: inv_freq[i], i < half_dim, half_dim = head_dim * partial_rotary_factor / 2.
// Types default, linear (positions shrunk by `factor`) and llama3 (low frequencies shrunk, high
// ones kept, a linear ramp of 1/wavelength between). kInvalidArgument where the configuration gives
// no even number of rotary channels.
absl::StatusOr<std::vector<float>> RopeInverseFrequencies(const RopeConfig& rope, int head_dim);

// Grows with the positions asked for. Not thread-safe while growing.
class RopeTables {
 public:
  RopeTables() = default;
  explicit RopeTables(std::vector<float> inv_freq) : inv_freq_(std::move(inv_freq)) {}

  // After this, rows 0..position exist. Pointers from before are void.
  void Ensure(int position);

  const std::vector<float>& inv_freq() const { return inv_freq_; }
  int half_dim() const { return static_cast<int>(inv_freq_.size()); }
  const float* cos() const { return cos_.data(); }  // [rows][half_dim]
  const float* sin() const { return sin_.data(); }

 private:
  std::vector<float> inv_freq_;
  int rows_ = 0;
  std::vector<float> cos_, sin_;
};

}  // namespace oscarkv
