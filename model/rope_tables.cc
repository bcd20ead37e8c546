// Frequencies and angles are rounded to fp32 where the models' own code rounds them: a model is
// trained with those angles, not with the exact ones, and at position 32,000 the two differ by 1e-3
// rad.
#include "model/rope_tables.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

float Llama3Frequency(const RopeConfig& rope, float inv_freq) {
  const double wavelength = 2 * std::numbers::pi / inv_freq;
  const double original = rope.original_max_position_embeddings;
  if (wavelength < original / rope.high_freq_factor) return inv_freq;
  if (wavelength > original / rope.low_freq_factor)
    return static_cast<float>(inv_freq / rope.factor);
  const double smooth = (original / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return static_cast<float>((1 - smooth) * inv_freq / rope.factor + smooth * inv_freq);
}

}  // namespace

absl::StatusOr<std::vector<float>> RopeInverseFrequencies(const RopeConfig& rope, int head_dim) {
  const int rotary_dim = static_cast<int>(head_dim * rope.partial_rotary_factor);
  if (rotary_dim < 2 || rotary_dim > head_dim || rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim ", head_dim, " with partial_rotary_factor ", rope.partial_rotary_factor,
        " gives ", rotary_dim, " rotary channels; expected an even number in [2, head_dim]"));
  }
  std::vector<float> inv_freq(rotary_dim / 2);
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    const float f = 1.0f / static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
    switch (rope.type) {
      case RopeConfig::Type::kDefault:
        inv_freq[i] = f;
        break;
      case RopeConfig::Type::kLinear:
        inv_freq[i] = static_cast<float>(f / rope.factor);
        break;
      case RopeConfig::Type::kLlama3:
        inv_freq[i] = Llama3Frequency(rope, f);
        break;
    }
  }
  return inv_freq;
}

void RopeTables::Ensure(int position) {
  if (position < rows_) return;
  const int rows = std::max(position + 1, rows_ + rows_ / 2);
  const size_t half = inv_freq_.size();
  cos_.resize(rows * half);
  sin_.resize(rows * half);
  for (int p = rows_; p < rows; ++p) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * inv_freq_[i];
      cos_[p * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin_[p * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  rows_ = rows;
}

}  // namespace oscarkv
