// Rotations in safetensors: arrays "layers.N.rotation"; others (eigenvalues) are ignored.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "codec/rotation_source.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// "layers.7.rotation" -> 7; -1: another name.
int LayerOf(absl::string_view name) {
  int layer = -1;
  if (!absl::ConsumePrefix(&name, "layers.") || !absl::ConsumeSuffix(&name, ".rotation") ||
      !absl::SimpleAtoi(name, &layer) || layer < 0 || absl::StrCat(layer) != name) {
    return -1;
  }
  return layer;
}

RotationTensor Dense(FileTensor from) {
  RotationTensor t;
  t.type = from.type;
  t.bytes = from.bytes;
  t.strides.resize(from.shape.size());
  int64_t stride = 1;
  for (size_t i = from.shape.size(); i-- > 0; stride *= from.shape[i]) t.strides[i] = stride;
  t.shape = std::move(from.shape);
  return t;
}

}  // namespace

absl::StatusOr<RotationSet> ParseRotationSafetensors(absl::Span<const uint8_t> file,
                                                     const kernels::KvShape& shape) {
  ASSIGN_OR_RETURN(const TensorFile tensors, TensorFile::Open(file));
  RotationSet set(shape);
  for (const std::string& name : tensors.Names()) {
    const int layer = LayerOf(name);
    if (layer < 0) continue;
    auto t = tensors.Find(name);
    if (!t.ok()) return Annotate(t.status(), absl::StrCat("layer ", layer));
    RETURN_IF_ERROR(SetRotation(layer, Dense(*std::move(t)), &set));
  }
  RETURN_IF_ERROR(set.CheckComplete());
  return set;
}

}  // namespace oscarkv
