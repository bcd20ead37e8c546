// Rotation files: a whole file (zip, safetensors), and a bare pickle, which a mutated zip's CRC
// would keep out of reach.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "codec/rotation_source.h"
#include "codec/rotation_zoo.h"

namespace oscarkv {
namespace {

constexpr kernels::KvShape kShape = {2, 2, 4};

// What was accepted is complete, finite and orthogonal enough.
void Check(const absl::StatusOr<RotationSet>& set) {
  if (!set.ok()) {
    if (set.status().message().empty()) std::abort();
    return;
  }
  for (int l = 0; l < kShape.num_layers; ++l) {
    for (int h = 0; h < kShape.num_kv_heads; ++h) {
      const float* m = set->At(l, h);
      for (int i = 0; i < 4; ++i) {
        float norm = 0;
        for (int r = 0; r < 4; ++r) norm += m[r * 4 + i] * m[r * 4 + i];
        if (!(std::abs(norm - 1) < 0.01f)) std::abort();
      }
    }
  }
}

// Every storage holds the same orthogonal matrix, over and over.
absl::StatusOr<absl::Span<const uint8_t>> Storage(absl::string_view, uint64_t bytes) {
  static const std::vector<uint8_t> pattern = [] {
    const RotationSet hadamard = HadamardRotations(kShape);
    std::vector<uint8_t> p(1 << 12);
    for (size_t at = 0; at < p.size(); at += 64) std::memcpy(p.data() + at, hadamard.At(0, 0), 64);
    return p;
  }();
  if (bytes > pattern.size()) return absl::InvalidArgumentError("more than the test has");
  return absl::MakeConstSpan(pattern).first(bytes);
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::Span<const uint8_t> input(data, size);
  oscarkv::Check(oscarkv::ParseRotations(input, oscarkv::kShape));
  oscarkv::Check(oscarkv::ParseRotationPickle(input, oscarkv::Storage, oscarkv::kShape));
  return 0;
}
