// A restricted unpickler: reads the data.pkl of a torch.save file into plain values and executes
// nothing.
//
// Only an allow-list of opcodes and of globals is known; everything else is an error that names it.
// Values form a graph (memo references share, dicts may even contain themselves), so readers
// descend by a fixed number of steps, never recursively. Memory is linear in the pickle's size,
// which is bounded.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace oscarkv {

inline constexpr size_t kMaxPickleBytes = 8 << 20;
inline constexpr size_t kMaxPickleValues = 1 << 20;

struct PickleValue {
  enum class Type : uint8_t {
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kTuple,
    kList,
    kDict,
    kGlobal,
    kStorage,
    kTensor
  };
  Type type = Type::kNone;
  int64_t integer =
      0;  // kBool, kInt; kGlobal: a PickleGlobal; kStorage, kTensor: index into Pickle's tables
  absl::string_view text;       // kString, a view of the pickle
  std::vector<uint32_t> items;  // indices into Pickle::values; kDict: key, value, key, value, ...
};

enum class PickleGlobal {
  kOrderedDict,
  kRebuildTensor,
  kFloatStorage,
  kDoubleStorage,
  kBFloat16Storage,
  kHalfStorage
};

enum class StorageType { kF32, kF64, kBf16, kF16 };
constexpr size_t StorageElementBytes(StorageType t) {
  return t == StorageType::kF64 ? 8 : t == StorageType::kF32 ? 4 : 2;
}

// The flat array behind tensors, kept in the archive under data/<key>.
struct PickleStorage {
  StorageType type = StorageType::kF32;
  absl::string_view key;
  int64_t elements = 0;
};

// Checked: every element lies inside the storage.
struct PickleTensor {
  uint32_t storage = 0;  // index into Pickle::storages
  int64_t offset = 0;    // in elements
  std::vector<int64_t> shape, strides;
};

struct Pickle {
  std::vector<PickleValue> values;
  std::vector<PickleStorage> storages;
  std::vector<PickleTensor> tensors;
  uint32_t root = 0;

  const PickleValue& at(uint32_t id) const { return values[id]; }
  // The value of a string key of a dict (the last one of several, as in Python); null: none.
  const PickleValue* Find(const PickleValue& dict, absl::string_view key) const;
};

// kInvalidArgument names the opcode, its byte offset and what is wrong. The result refers to
// `bytes`.
absl::StatusOr<Pickle> ParsePickle(absl::Span<const uint8_t> bytes);

absl::string_view PickleTypeName(PickleValue::Type type);

}  // namespace oscarkv
