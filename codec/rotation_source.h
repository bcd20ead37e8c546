// Internal to the room: what the two forms of rotation files share.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "codec/pickle.h"
#include "codec/rotation_zoo.h"

namespace oscarkv {

// A tensor in a file. Every element lies inside `bytes`.
struct RotationTensor {
  StorageType type = StorageType::kF32;
  absl::Span<const uint8_t> bytes;
  int64_t offset = 0;                   // in elements
  std::vector<int64_t> shape, strides;  // in elements
};

// Sets layer `layer` from a [d, d] or [kv_heads, d, d] tensor; other shapes are errors.
absl::Status SetRotation(int layer, const RotationTensor& tensor, RotationSet* set);

// The bytes of the storage `key`, exactly `bytes` of them; they live until the parser returns.
using StorageReader =
    std::function<absl::StatusOr<absl::Span<const uint8_t>>(absl::string_view key, uint64_t bytes)>;
// From the data.pkl of a torch.save file. Separate from the archive so that fuzzing reaches it
// without a valid zip around.
absl::StatusOr<RotationSet> ParseRotationPickle(absl::Span<const uint8_t> pickle,
                                                const StorageReader& storage,
                                                const kernels::KvShape& shape);

absl::StatusOr<RotationSet> ParseRotationZip(absl::Span<const uint8_t> file,
                                             const kernels::KvShape& shape);
absl::StatusOr<RotationSet> ParseRotationSafetensors(absl::Span<const uint8_t> file,
                                                     const kernels::KvShape& shape);

absl::Status Annotate(const absl::Status& status, absl::string_view where);

}  // namespace oscarkv
