// Files of named arrays (safetensors: u64 header length, JSON header, data), as small as fitted
// codecs need them. model/ has a full reader for checkpoints; codec must not depend on it, and
// needs the metadata that a fit leaves for people and checks.
//
// Files are untrusted: the header is bounded and flat, and an array is checked when it is asked
// for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "codec/pickle.h"

namespace oscarkv {

inline constexpr uint64_t kMaxTensorFileBytes = uint64_t{8} << 30;

// An array in a file: dense, row-major, little-endian; every element lies inside `bytes`.
struct FileTensor {
  StorageType type = StorageType::kF32;
  std::vector<int64_t> shape;  // up to 3 sizes
  absl::Span<const uint8_t> bytes;
  int64_t elements() const;
};

// Refers to the image, which must outlive it. Immutable: thread-safe.
class TensorFile {
 public:
  // kInvalidArgument: no safetensors file.
  static absl::StatusOr<TensorFile> Open(absl::Span<const uint8_t> image);
  ~TensorFile();
  TensorFile(TensorFile&&) noexcept;

  std::vector<std::string> Names() const;
  // Of the header's "__metadata__"; empty strings for what it does not hold.
  std::string Metadata(const std::string& key) const;
  std::map<std::string, std::string> AllMetadata() const;
  // kNotFound: no such array; kInvalidArgument: what is wrong with it.
  absl::StatusOr<FileTensor> Find(const std::string& name) const;
  // Converted, after comparing the shape: kInvalidArgument names the array and both shapes.
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             const std::vector<int64_t>& shape) const;
  absl::StatusOr<std::vector<double>> ReadF64(const std::string& name,
                                              const std::vector<int64_t>& shape) const;

 private:
  struct Header;
  TensorFile();
  std::unique_ptr<Header> header_;
  absl::Span<const uint8_t> data_;
};

// Collects arrays and metadata; the same calls give the same bytes.
class TensorFileWriter {
 public:
  void SetMetadata(const std::string& key, const std::string& value) { metadata_[key] = value; }
  // `values` has the product of `shape` elements. A name is added once.
  void AddF32(const std::string& name, std::vector<int64_t> shape, absl::Span<const float> values);
  void AddF64(const std::string& name, std::vector<int64_t> shape, absl::Span<const double> values);
  // Rounded to nearest.
  void AddF16(const std::string& name, std::vector<int64_t> shape, absl::Span<const float> values);
  std::string Finish() const;

 private:
  struct Entry {
    const char* dtype;
    std::vector<int64_t> shape;
    size_t begin, end;
  };
  void Add(const std::string& name, const char* dtype, std::vector<int64_t> shape,
           const void* values, size_t bytes);
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> entries_;
  std::string data_;
};

// One element at `p`, whatever its type.
double StorageElement(StorageType type, const uint8_t* p);

// A whole file, at most `max_bytes`. kNotFound, kInvalidArgument (too large), kUnavailable.
absl::StatusOr<std::vector<uint8_t>> ReadWholeFile(const std::string& path, uint64_t max_bytes);
// Writes beside `path` and renames: readers see the old file or the new one. kUnavailable.
absl::Status WriteWholeFile(const std::string& path, absl::string_view bytes);

}  // namespace oscarkv
