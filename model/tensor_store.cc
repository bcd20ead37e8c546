// TensorStore: the mapped files of a model folder.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"
#include "model/safetensors.h"

namespace oscarkv {

// One file, mapped read-only for as long as the store lives.
struct TensorStore::Mapping {
  std::string path;
  absl::Span<const uint8_t> bytes;

  ~Mapping() {
    if (!bytes.empty()) ::munmap(const_cast<uint8_t*>(bytes.data()), bytes.size());
  }
  static absl::StatusOr<std::unique_ptr<Mapping>> Map(const std::string& path);
};

namespace {

using nlohmann::json;

constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxShards = 4096;

template <typename T>
T LoadAs(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Exact, subnormals included.
float HalfToFloat(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

std::string ShapeName(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status InFile(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// A shard's name comes from the index, which is untrusted: only a plain name within the folder.
bool IsPlainFileName(absl::string_view name) {
  return !name.empty() && name[0] != '.' && name.size() <= 255 &&
         name.find_first_of(absl::string_view("/\\\0", 3)) == absl::string_view::npos &&
         absl::EndsWith(name, ".safetensors");
}

// tensor -> shard, checked.
absl::StatusOr<absl::flat_hash_map<std::string, std::string>> ParseIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const json index,
                   ParseBoundedJson(text, path, {.max_bytes = kMaxIndexBytes, .max_depth = 8}));
  const json* weights = FindMember(index, "weight_map");
  if (weights == nullptr || !weights->is_object() || weights->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no weight_map of tensors to files"));
  }
  absl::flat_hash_map<std::string, std::string> out;
  for (const auto& [tensor, file] : weights->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map of \"", tensor.substr(0, 200), "\" is ",
                       JsonExcerpt(file), ", expected the plain name of a .safetensors file"));
    }
    out.emplace(tensor, file.get<std::string>());
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TensorStore::Mapping>> TensorStore::Mapping::Map(
    const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info;
  if (::fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  auto mapping = std::make_unique<Mapping>();
  mapping->path = path;
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return mapping;
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (p == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
  mapping->bytes = absl::MakeConstSpan(static_cast<const uint8_t*>(p), size);
  return mapping;
}

TensorStore::~TensorStore() = default;

absl::StatusOr<std::unique_ptr<TensorStore>> TensorStore::Open(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  std::set<std::string> files;
  absl::flat_hash_map<std::string, std::string> index;  // empty for a single file
  if (!S_ISDIR(info.st_mode)) {
    files.insert(path);
  } else if (const std::string single = absl::StrCat(path, "/model.safetensors");
             ::access(single.c_str(), F_OK) == 0) {
    files.insert(single);
  } else {
    const std::string index_path = absl::StrCat(path, "/model.safetensors.index.json");
    if (::access(index_path.c_str(), F_OK) != 0) {
      return absl::NotFoundError(
          absl::StrCat(path, ": neither model.safetensors nor model.safetensors.index.json"));
    }
    ASSIGN_OR_RETURN(index, ParseIndex(index_path));
    for (auto& [tensor, file] : index) {
      file = absl::StrCat(path, "/", file);
      files.insert(file);
    }
    if (files.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": ", files.size(), " files, the limit is ", kMaxShards));
    }
  }

  std::unique_ptr<TensorStore> store(new TensorStore);
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::unique_ptr<Mapping> mapping, Mapping::Map(file));
    absl::StatusOr<std::map<std::string, TensorView>> tensors = ParseSafetensors(mapping->bytes);
    if (!tensors.ok()) return InFile(tensors.status(), file);
    for (auto& [name, view] : *tensors) {
      const auto listed = index.find(name);
      if (!index.empty() && (listed == index.end() || listed->second != file)) {
        return absl::InvalidArgumentError(absl::StrCat(
            file, ": tensor \"", name, "\" is ",
            listed == index.end() ? "not in the index" : "in another file by the index"));
      }
      store->tensors_.emplace(name, std::move(view));
    }
    store->mappings_.push_back(std::move(mapping));
  }
  for (const auto& [name, file] : index) {
    if (!store->Has(name)) {
      return absl::NotFoundError(
          absl::StrCat(file, ": tensor \"", name, "\", which the index promises, is missing"));
    }
  }
  return store;
}

absl::StatusOr<TensorView> TensorStore::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it != tensors_.end()) return it->second;
  return absl::NotFoundError(absl::StrCat(
      "no tensor \"", name, "\" in ", mappings_.front()->path,
      mappings_.size() > 1 ? absl::StrCat(" and ", mappings_.size() - 1, " more files") : ""));
}

absl::StatusOr<TensorView> TensorStore::Find(const std::string& name,
                                             const std::vector<int64_t>& shape) const {
  ASSIGN_OR_RETURN(TensorView view, Find(name));
  if (view.shape == shape) return view;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor \"", name, "\" has shape ", ShapeName(view.shape), ", expected ", ShapeName(shape)));
}

bool TensorStore::Has(const std::string& name) const {
  return tensors_.contains(name);
}

std::vector<std::string> TensorStore::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) names.push_back(name);
  return names;
}

absl::StatusOr<std::vector<float>> TensorStore::ReadF32(const std::string& name,
                                                        const std::vector<int64_t>& shape) const {
  ASSIGN_OR_RETURN(const TensorView view, Find(name, shape));
  const size_t n = static_cast<size_t>(view.num_elements());
  const uint8_t* p = view.data;
  std::vector<float> out(n);
  switch (view.dtype) {
    case DType::kF32:
      if (n > 0) std::memcpy(out.data(), p, n * sizeof(float));
      break;
    case DType::kBf16:
      for (size_t i = 0; i < n; ++i) {
        out[i] = std::bit_cast<float>(uint32_t{LoadAs<uint16_t>(p + 2 * i)} << 16);
      }
      break;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) out[i] = HalfToFloat(LoadAs<uint16_t>(p + 2 * i));
      break;
    case DType::kF64:
      for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(LoadAs<double>(p + 8 * i));
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor \"", name, "\" is ", DTypeName(view.dtype), ", expected F32, F16, BF16 or F64"));
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> TensorStore::ReadI32(const std::string& name) const {
  ASSIGN_OR_RETURN(const TensorView view, Find(name));
  if (view.dtype != DType::kI32 && view.dtype != DType::kI64) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", name, "\" is ", DTypeName(view.dtype), ", expected I32 or I64"));
  }
  const size_t n = static_cast<size_t>(view.num_elements());
  std::vector<int32_t> out(n);
  for (size_t i = 0; i < n; ++i) {
    const int64_t value = view.dtype == DType::kI32 ? LoadAs<int32_t>(view.data + 4 * i)
                                                    : LoadAs<int64_t>(view.data + 8 * i);
    if (value < std::numeric_limits<int32_t>::min() ||
        value > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", name, "\": element ", i, " is ", value, ", beyond 32 bits"));
    }
    out[i] = static_cast<int32_t>(value);
  }
  return out;
}

void TensorStore::Release(const TensorView& tensor) const {
  // Whole pages only: what shares a page with a neighbour stays with it. A private mapping that is
  // never written to loses nothing. Advice: that it was not taken is no error.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(tensor.data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(tensor.data) + tensor.bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::vector<absl::Span<const uint8_t>> TensorStore::files() const {
  std::vector<absl::Span<const uint8_t>> out;
  for (const auto& mapping : mappings_) out.push_back(mapping->bytes);
  return out;
}

}  // namespace oscarkv
