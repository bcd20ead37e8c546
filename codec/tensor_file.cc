#include "codec/tensor_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "kernels/types.h"
#include "nlohmann/json.hpp"

namespace oscarkv {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 8 << 20;
constexpr absl::string_view kMetadata = "__metadata__";
static_assert(std::endian::native == std::endian::little);

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
    if (!v.is_number_unsigned() || v.get<uint64_t>() > kMaxTensorFileBytes) return std::nullopt;
    out.push_back(static_cast<int64_t>(v.get<uint64_t>()));
  }
  return out;
}

absl::StatusOr<FileTensor> ReadTensor(const Json& header, absl::Span<const uint8_t> data) {
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
  FileTensor t;
  t.type = *type;
  t.bytes = data.subspan(begin, end - begin);
  // Each size is at most 2^33, checked step by step: no product overflows.
  uint64_t elements = 1;
  for (const int64_t size : *shape) {
    elements *= size;
    if (elements > (uint64_t{1} << 30)) return Bad("tensor is larger than a codec's file may be");
  }
  if (elements * StorageElementBytes(*type) != t.bytes.size()) {
    return Bad("tensor of ", elements, " elements has ", t.bytes.size(), " bytes");
  }
  t.shape = *std::move(shape);
  return t;
}

template <typename T>
absl::StatusOr<std::vector<T>> ReadAs(const TensorFile& file, const std::string& name,
                                      const std::vector<int64_t>& shape) {
  const absl::StatusOr<FileTensor> t = file.Find(name);
  if (!t.ok()) {
    return absl::Status(t.status().code(), absl::StrCat(name, ": ", t.status().message()));
  }
  if (t->shape != shape) {
    return Bad(name, " has shape [", absl::StrJoin(t->shape, ", "), "], expected [",
               absl::StrJoin(shape, ", "), "]");
  }
  std::vector<T> out(t->elements());
  const size_t size = StorageElementBytes(t->type);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<T>(StorageElement(t->type, t->bytes.data() + i * size));
  return out;
}

}  // namespace

double StorageElement(StorageType type, const uint8_t* p) {
  uint64_t bits = 0;
  std::memcpy(&bits, p, StorageElementBytes(type));
  switch (type) {
    case StorageType::kF64:
      return std::bit_cast<double>(bits);
    case StorageType::kF32:
      return std::bit_cast<float>(static_cast<uint32_t>(bits));
    case StorageType::kBf16:
      return kernels::ToFloat(static_cast<kernels::Bf16>(bits));
    case StorageType::kF16:
      return kernels::Fp16ToFloat(static_cast<kernels::Fp16>(bits));
  }
  return 0;
}

int64_t FileTensor::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

// NOLINTNEXTLINE(bugprone-exception-escape): the move constructor is nlohmann's
struct TensorFile::Header {
  Json json;
};
TensorFile::TensorFile() : header_(std::make_unique<Header>()) {}
TensorFile::~TensorFile() = default;
TensorFile::TensorFile(TensorFile&&) noexcept = default;

absl::StatusOr<TensorFile> TensorFile::Open(absl::Span<const uint8_t> image) {
  uint64_t header_bytes = 0;
  if (image.size() < sizeof(header_bytes))
    return Bad("of ", image.size(), " bytes is neither a .pt nor a safetensors file");
  std::memcpy(&header_bytes, image.data(), sizeof(header_bytes));
  image.remove_prefix(sizeof(header_bytes));
  if (header_bytes > std::min<uint64_t>(kMaxHeaderBytes, image.size())) {
    return Bad("neither a .pt nor a safetensors file (its header would have ", header_bytes,
               " bytes of ", image.size(), ")");
  }
  // Nothing in a safetensors header is nested deeper than header > tensor > list.
  bool too_deep = false;
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    return !(too_deep |= depth > 3);
  };
  TensorFile file;
  Json& header = file.header_->json;
  header = Json::parse(image.begin(), image.begin() + header_bytes, limit_depth,
                       /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object() || too_deep)
    return Bad("safetensors header is not a flat JSON object");
  file.data_ = image.subspan(header_bytes);
  return file;
}

std::vector<std::string> TensorFile::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : header_->json.items()) {
    if (name != kMetadata) names.push_back(name);
  }
  return names;
}

std::map<std::string, std::string> TensorFile::AllMetadata() const {
  std::map<std::string, std::string> all;
  const auto it = header_->json.find(std::string(kMetadata));
  if (it == header_->json.end() || !it->is_object()) return all;
  for (const auto& [key, value] : it->items()) {
    if (value.is_string()) all[key] = value.get<std::string>();
  }
  return all;
}

std::string TensorFile::Metadata(const std::string& key) const {
  const auto all = AllMetadata();
  const auto it = all.find(key);
  return it == all.end() ? "" : it->second;
}

absl::StatusOr<FileTensor> TensorFile::Find(const std::string& name) const {
  const auto it = header_->json.find(name);
  if (it == header_->json.end() || name == kMetadata) return absl::NotFoundError("no such tensor");
  return ReadTensor(*it, data_);
}

absl::StatusOr<std::vector<float>> TensorFile::ReadF32(const std::string& name,
                                                       const std::vector<int64_t>& shape) const {
  return ReadAs<float>(*this, name, shape);
}
absl::StatusOr<std::vector<double>> TensorFile::ReadF64(const std::string& name,
                                                        const std::vector<int64_t>& shape) const {
  return ReadAs<double>(*this, name, shape);
}

void TensorFileWriter::Add(const std::string& name, const char* dtype, std::vector<int64_t> shape,
                           const void* values, size_t bytes) {
  const size_t begin = data_.size();
  data_.append(static_cast<const char*>(values), bytes);
  entries_[name] = {dtype, std::move(shape), begin, data_.size()};
}
void TensorFileWriter::AddF32(const std::string& name, std::vector<int64_t> shape,
                              absl::Span<const float> values) {
  Add(name, "F32", std::move(shape), values.data(), values.size() * sizeof(float));
}
void TensorFileWriter::AddF64(const std::string& name, std::vector<int64_t> shape,
                              absl::Span<const double> values) {
  Add(name, "F64", std::move(shape), values.data(), values.size() * sizeof(double));
}
void TensorFileWriter::AddF16(const std::string& name, std::vector<int64_t> shape,
                              absl::Span<const float> values) {
  std::vector<kernels::Fp16> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(), kernels::FloatToFp16);
  Add(name, "F16", std::move(shape), rounded.data(), rounded.size() * sizeof(kernels::Fp16));
}

std::string TensorFileWriter::Finish() const {
  Json header = Json::object();  // sorted keys: the same bytes for the same content
  if (!metadata_.empty()) header[std::string(kMetadata)] = metadata_;
  for (const auto& [name, e] : entries_) {
    header[name] = {{"dtype", e.dtype}, {"shape", e.shape}, {"data_offsets", {e.begin, e.end}}};
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');  // arrays stay aligned
  const uint64_t size = json.size();
  std::string out(reinterpret_cast<const char*>(&size), sizeof(size));
  out.reserve(out.size() + json.size() + data_.size());
  return out.append(json).append(data_);
}

absl::StatusOr<std::vector<uint8_t>> ReadWholeFile(const std::string& path, uint64_t max_bytes) {
  std::error_code ec;
  if (!std::filesystem::is_regular_file(path, ec)) return absl::NotFoundError("no such file");
  const uint64_t bytes = std::filesystem::file_size(path, ec);
  if (ec) return absl::UnavailableError(absl::StrCat("cannot read its size: ", ec.message()));
  if (bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes, " bytes, at most ", max_bytes, " are read"));
  }
  std::vector<uint8_t> file(bytes);
  std::ifstream in(path, std::ios::binary);
  in.read(reinterpret_cast<char*>(file.data()), static_cast<std::streamsize>(bytes));
  if (!in)
    return absl::UnavailableError(
        absl::StrCat("reading it failed after ", in.gcount(), " of ", bytes, " bytes"));
  return file;
}

absl::Status WriteWholeFile(const std::string& path, absl::string_view bytes) {
  const std::string beside = path + ".tmp";
  std::ofstream out(beside, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) return absl::UnavailableError(absl::StrCat("writing ", beside, " failed"));
  std::error_code ec;
  std::filesystem::rename(beside, path, ec);
  if (ec) {
    return absl::UnavailableError(
        absl::StrCat("renaming ", beside, " to ", path, ": ", ec.message()));
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
