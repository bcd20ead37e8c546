#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"

// The format: 8 bytes, little endian, the header's length n; n bytes of JSON, an object of
//   name: {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}
// and optionally "__metadata__": {string: string}; then the data, to which the offsets are
// relative. Tensors fill the data without gap and without overlap; a file that says otherwise is
// damaged or made to confuse, and refused.

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 16;

struct DTypeRow {
  const char* name;
  DType dtype;
  size_t size;
};
constexpr DTypeRow kDTypes[] = {
    {"F64", DType::kF64, 8},   {"F32", DType::kF32, 4}, {"F16", DType::kF16, 2},
    {"BF16", DType::kBf16, 2}, {"I64", DType::kI64, 8}, {"I32", DType::kI32, 4},
    {"I16", DType::kI16, 2},   {"I8", DType::kI8, 1},   {"U8", DType::kU8, 1},
    {"BOOL", DType::kBool, 1},
};

const DTypeRow& Row(DType t) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [t](const DTypeRow& row) { return row.dtype == t; });
}

absl::Status Bad(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("safetensors: tensor \"", name.substr(0, 200), "\": ", what));
}

absl::StatusOr<TensorView> ParseTensor(absl::string_view name, const json& entry,
                                       absl::Span<const uint8_t> data) {
  if (!entry.is_object()) return Bad(name, "not an object");
  const json* dtype = FindMember(entry, "dtype");
  const json* shape = FindMember(entry, "shape");
  const json* offsets = FindMember(entry, "data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || entry.size() != 3) {
    return Bad(name, "expected exactly dtype, shape and data_offsets");
  }
  const auto row = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                [&](const DTypeRow& r) { return *dtype == r.name; });
  if (row == std::end(kDTypes)) {
    return absl::UnimplementedError(absl::StrCat("safetensors: tensor \"", name.substr(0, 200),
                                                 "\": dtype ", JsonExcerpt(*dtype),
                                                 " is not supported"));
  }
  if (!shape->is_array() || shape->size() > kMaxRank) {
    return Bad(name, absl::StrCat("shape is not a list of at most ", kMaxRank, " numbers"));
  }
  TensorView view{.dtype = row->dtype, .shape = {}, .data = nullptr, .bytes = row->size};
  bool overflow = false;
  for (const json& dimension : *shape) {
    int64_t d = 0;
    if (!JsonInteger(dimension, 0, INT64_MAX, &d)) {
      return Bad(name, absl::StrCat("shape holds ", JsonExcerpt(dimension)));
    }
    view.shape.push_back(d);
    overflow |= __builtin_mul_overflow(view.bytes, static_cast<size_t>(d), &view.bytes);
  }
  int64_t begin = 0, end = 0;
  const int64_t data_size = static_cast<int64_t>(data.size());
  if (!offsets->is_array() || offsets->size() != 2 ||
      !JsonInteger((*offsets)[0], 0, data_size, &begin) ||
      !JsonInteger((*offsets)[1], begin, data_size, &end)) {
    return Bad(name, absl::StrCat("data_offsets ", JsonExcerpt(*offsets),
                                  " are not a range within the ", data.size(), " bytes of data"));
  }
  if (overflow || static_cast<size_t>(end - begin) != view.bytes) {
    return Bad(name, absl::StrCat("shape ", JsonExcerpt(*shape), " of ", row->name,
                                  " does not fill data_offsets ", JsonExcerpt(*offsets)));
  }
  view.data = data.data() + begin;
  return view;
}

absl::Status CheckMetadata(const json& metadata) {
  if (!metadata.is_object()) {
    return absl::InvalidArgumentError("safetensors: __metadata__ is not an object");
  }
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("safetensors: __metadata__ \"", key.substr(0, 200), "\" is not a string"));
    }
  }
  return absl::OkStatus();
}

// Without gap, without overlap, up to the last byte.
absl::Status CheckCoverage(const std::map<std::string, TensorView>& tensors,
                           absl::Span<const uint8_t> data) {
  std::vector<std::pair<const uint8_t*, const std::pair<const std::string, TensorView>*>> order;
  order.reserve(tensors.size());
  for (const auto& tensor : tensors) {
    if (tensor.second.bytes > 0) order.emplace_back(tensor.second.data, &tensor);
  }
  std::sort(order.begin(), order.end());
  const uint8_t* next = data.data();
  for (const auto& [begin, tensor] : order) {
    if (begin != next) {
      return Bad(tensor->first,
                 absl::StrCat("begins at byte ", begin - data.data(), " of the data, expected ",
                              next - data.data(), begin < next ? " (overlap)" : " (gap)"));
    }
    next = begin + tensor->second.bytes;
  }
  if (next != data.data() + data.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "safetensors: ", data.size(), " bytes of data, the tensors fill ", next - data.data()));
  }
  return absl::OkStatus();
}

}  // namespace

size_t DTypeSize(DType t) {
  return Row(t).size;
}
absl::string_view DTypeName(DType t) {
  return Row(t).name;
}

int64_t TensorView::num_elements() const {
  return static_cast<int64_t>(bytes / DTypeSize(dtype));
}

absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(
    absl::Span<const uint8_t> image) {
  if (image.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors: ", image.size(), " bytes are too short for a header"));
  }
  uint64_t header_size = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_size |= uint64_t{image[i]} << (8 * i);
  if (header_size > kMaxHeaderBytes || header_size > image.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: a header of ", header_size,
                                                   " bytes in ", image.size(),
                                                   " bytes; the limit is ", kMaxHeaderBytes));
  }
  const absl::string_view text(reinterpret_cast<const char*>(image.data()) + kLengthBytes,
                               header_size);
  const absl::Span<const uint8_t> data = image.subspan(kLengthBytes + header_size);
  ASSIGN_OR_RETURN(
      const json header,
      ParseBoundedJson(text, "safetensors header", {.max_bytes = kMaxHeaderBytes, .max_depth = 4}));
  if (!header.is_object()) {
    return absl::InvalidArgumentError("safetensors: the header is not an object");
  }
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      RETURN_IF_ERROR(CheckMetadata(entry));
      continue;
    }
    ASSIGN_OR_RETURN(TensorView view, ParseTensor(name, entry, data));
    tensors.emplace(name, std::move(view));
  }
  RETURN_IF_ERROR(CheckCoverage(tensors, data));
  return tensors;
}

}  // namespace oscarkv
