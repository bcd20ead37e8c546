// What benchmarks on a GPU need that have no model at hand: well-known shapes, and pools.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "model/kv_pool.h"
#include "model/model_config.h"

namespace oscarkv::cli {

// A choice of --shape, for contexts of up to `context` tokens.
ModelConfig ShapeOf(const std::string& name, int context);
inline const std::vector<std::string>& ShapeNames() {
  static const auto* names = new std::vector<std::string>{"qwen3-8b", "llama-3.1-8b"};
  return *names;
}

// A codec that was fitted to nothing: for measurements of time.
absl::StatusOr<std::shared_ptr<const KvCodec>> DataFreeCodec(Profile profile,
                                                             const kernels::KvShape& shape);

// The numbers of an option that is a list; kInvalidArgument: one is not of 1 to `most`, or none.
absl::StatusOr<std::vector<int>> Numbers(absl::string_view option,
                                         const std::vector<std::string>& texts, int most);

double Median(std::vector<float> values);  // not empty

// A pool in address space that takes memory only where it is touched.
class EmptyPool {
 public:
  static absl::StatusOr<std::unique_ptr<EmptyPool>> Create(const kernels::KvShape& shape,
                                                           size_t pages, size_t blocks);
  ~EmptyPool();
  KvPool& pool() { return pool_; }

 private:
  EmptyPool(const kernels::KvShape& shape, absl::Span<uint8_t> pages, absl::Span<uint8_t> blocks)
      : pages_(pages), blocks_(blocks), pool_(shape, pages, blocks) {}
  absl::Span<uint8_t> pages_, blocks_;
  KvPool pool_;
};

}  // namespace oscarkv::cli
