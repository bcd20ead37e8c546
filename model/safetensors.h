// Reads safetensors files, single or sharded, by mmap. The header is untrusted: bounded, checked,
// fuzzed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace oscarkv {

enum class DType { kF64, kF32, kF16, kBf16, kI64, kI32, kI16, kI8, kU8, kBool };
size_t DTypeSize(DType t);
absl::string_view DTypeName(DType t);

struct TensorView {
  DType dtype;
  std::vector<int64_t> shape;
  const uint8_t* data;  // unaligned; belongs to the file
  size_t bytes;
  int64_t num_elements() const;
};

// Parses the header of a safetensors image and checks that the tensors fill the data behind it
// without gap and without overlap. Names map to views into `image`. kInvalidArgument names the
// tensor; kUnimplemented: a dtype that is not listed above.
absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(absl::Span<const uint8_t> image);

// Immutable after opening: thread-safe. The files must not be changed or cut while they are mapped.
class TensorStore {
 public:
  // `path`: a .safetensors file, or a model folder with model.safetensors or
  // model.safetensors.index.json, whose shards must hold exactly the tensors that it says.
  static absl::StatusOr<std::unique_ptr<TensorStore>> Open(const std::string& path);
  ~TensorStore();

  // kNotFound names the tensor and the file(s).
  absl::StatusOr<TensorView> Find(const std::string& name) const;
  // The same, kInvalidArgument when its shape is not `shape`.
  absl::StatusOr<TensorView> Find(const std::string& name, const std::vector<int64_t>& shape) const;
  bool Has(const std::string& name) const;
  std::vector<std::string> Names() const;
  // The tensor as fp32 (from fp32, fp16, bf16, fp64); kInvalidArgument when its shape is not
  // `shape`.
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             const std::vector<int64_t>& shape) const;
  // From int32, or int64 whose values fit.
  absl::StatusOr<std::vector<int32_t>> ReadI32(const std::string& name) const;
  // The tensor's pages leave this process; they come back from the file when they are read again.
  // For those who read a tensor once: else a process holds as much as it ever read.
  void Release(const TensorView& tensor) const;
  // The whole mapped files, for fingerprints.
  std::vector<absl::Span<const uint8_t>> files() const;

 private:
  TensorStore() = default;
  struct Mapping;
  std::vector<std::unique_ptr<Mapping>> mappings_;
  std::map<std::string, TensorView> tensors_;
};

}  // namespace oscarkv
