// Rotations in safetensors: u64 header length, JSON header, data. model/ has a full reader; codec
// must not depend on it and needs only this: find "layers.N.rotation", check that it lies in the
// file.
#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "codec/rotation_source.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace oscarkv {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 8 << 20;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

std::optional<StorageType> TypeOf(const std::string& name) {
  if (name == "F32") return StorageType::kF32;
  if (name == "F64") return StorageType::kF64;
  if (name == "BF16") return StorageType::kBf16;
  if (name == "F16") return StorageType::kF16;
  return std::nullopt;
}

// A JSON array of non-negative integers, at most `max` of them.
std::optional<std::vector<int64_t>> Integers(const Json& tensor, const char* key, size_t max) {
  const auto it = tensor.find(key);
  if (it == tensor.end() || !it->is_array() || it->size() > max) return std::nullopt;
  std::vector<int64_t> out;
  for (const Json& v : *it) {
    if (!v.is_number_unsigned() || v.get<uint64_t>() > kMaxRotationFileBytes) return std::nullopt;
    out.push_back(static_cast<int64_t>(v.get<uint64_t>()));
  }
  return out;
}

// "layers.7.rotation" -> 7; -1: another name.
int LayerOf(absl::string_view name) {
  int layer = -1;
  if (!absl::ConsumePrefix(&name, "layers.") || !absl::ConsumeSuffix(&name, ".rotation") ||
      !absl::SimpleAtoi(name, &layer) || layer < 0 || absl::StrCat(layer) != name) {
    return -1;
  }
  return layer;
}

absl::StatusOr<RotationTensor> ReadTensor(const Json& header, absl::Span<const uint8_t> data) {
  const auto dtype = header.is_object() ? header.find("dtype") : header.end();
  if (!header.is_object() || dtype == header.end() || !dtype->is_string())
    return Bad("tensor without a dtype");
  const std::optional<StorageType> type = TypeOf(dtype->get_ref<const std::string&>());
  if (!type)
    return Bad("dtype ", absl::CHexEscape(dtype->get_ref<const std::string&>()),
               ", F32, F64, BF16 and F16 are supported");
  auto shape = Integers(header, "shape", 3);
  const auto offsets = Integers(header, "data_offsets", 2);
  if (!shape || !offsets || offsets->size() != 2)
    return Bad("tensor without a shape of up to 3 sizes, or without data_offsets");
  const auto begin = static_cast<uint64_t>((*offsets)[0]),
             end = static_cast<uint64_t>((*offsets)[1]);
  if (begin > end || end > data.size()) {
    return Bad("tensor at bytes ", begin, " to ", end, " of ", data.size(), " bytes of data");
  }
  RotationTensor t;
  t.type = *type;
  t.bytes = data.subspan(begin, end - begin);
  t.strides.resize(shape->size());
  uint64_t elements =
      1;  // the bound on each size, 2^30, keeps a product of three below 2^90: checked step by step
  for (size_t i = shape->size(); i-- > 0;) {
    t.strides[i] = static_cast<int64_t>(elements);
    elements *= (*shape)[i];
    if (elements > kMaxRotationFileBytes)
      return Bad("tensor is larger than a rotation file may be");
  }
  if (elements * StorageElementBytes(*type) != t.bytes.size()) {
    return Bad("tensor of ", elements, " elements has ", t.bytes.size(), " bytes");
  }
  t.shape = *std::move(shape);
  return t;
}

}  // namespace

absl::StatusOr<RotationSet> ParseRotationSafetensors(absl::Span<const uint8_t> file,
                                                     const kernels::KvShape& shape) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes))
    return Bad("of ", file.size(), " bytes is neither a .pt nor a safetensors file");
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file.remove_prefix(sizeof(header_bytes));
  if (header_bytes > std::min<uint64_t>(kMaxHeaderBytes, file.size())) {
    return Bad("neither a .pt nor a safetensors file (its header would have ", header_bytes,
               " bytes of ", file.size(), ")");
  }
  // Nothing in a safetensors header is nested deeper than header > tensor > list.
  bool too_deep = false;
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    return !(too_deep |= depth > 3);
  };
  const Json header = Json::parse(file.begin(), file.begin() + header_bytes, limit_depth,
                                  /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object() || too_deep)
    return Bad("safetensors header is not a flat JSON object");
  const absl::Span<const uint8_t> data = file.subspan(header_bytes);

  RotationSet set(shape);
  for (const auto& [name, tensor] : header.items()) {
    const int layer = LayerOf(name);
    if (layer < 0) continue;  // __metadata__, eigenvalues
    auto t = ReadTensor(tensor, data);
    if (!t.ok()) return Annotate(t.status(), absl::StrCat("layer ", layer));
    RETURN_IF_ERROR(SetRotation(layer, *t, &set));
  }
  RETURN_IF_ERROR(set.CheckComplete());
  return set;
}

}  // namespace oscarkv
