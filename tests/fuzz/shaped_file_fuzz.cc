// Files of profile shaped: what a hostile one gets accepted is complete, finite and within bounds,
// goes through the writer unchanged, and makes a codec or a clear error.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "codec/shaped_codec.h"
#include "codec/shaped_file.h"

namespace oscarkv {
namespace {

constexpr kernels::KvShape kShape = {1, 2, 64};  // the least that kernels encode

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void Check(const ShapedParameters& p) {
  constexpr size_t kSquare = 2 * 64 * 64;
  if (p.sides.size() != 2) std::abort();
  for (const ShapedSide& s : p.sides) {
    if (s.transform.size() != kSquare || s.metric.size() != kSquare || s.mean.size() != 2 * 64)
      std::abort();
    for (const std::vector<float>* v : {&s.transform, &s.metric, &s.mean}) {
      for (const float x : *v) {
        if (!std::isfinite(x)) std::abort();
      }
    }
  }
  const std::string bytes = WriteShapedFile(p);
  const auto again =
      ParseShapedFile({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, kShape);
  if (!again.ok()) std::abort();
  for (size_t i = 0; i < p.sides.size(); ++i) {
    if (!Same(p.sides[i].transform, again->sides[i].transform) ||
        !Same(p.sides[i].metric, again->sides[i].metric) ||
        !Same(p.sides[i].mean, again->sides[i].mean)) {
      std::abort();
    }
  }
  const auto codec = ShapedCodec::Create(p, {}, "fuzz");
  if (!codec.ok() && codec.status().message().empty()) std::abort();
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto p = oscarkv::ParseShapedFile({data, size}, oscarkv::kShape);
  if (p.ok()) {
    oscarkv::Check(*p);
  } else if (p.status().message().empty()) {
    std::abort();
  }
  return 0;
}
