#include "cli/random_model.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "codec/shaped_codec.h"
#include "common/status_macros.h"

namespace oscarkv::cli {

ModelConfig ShapeOf(const std::string& name, int context) {
  ModelConfig c;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.hidden_size = 4096;
  if (name == "qwen3-8b") {
    c.model_type = "qwen3";
    c.num_layers = 36;
    c.intermediate_size = 12288;
    c.vocab_size = 151936;
    c.qk_norm = true;
    c.rope.theta = 1e6;
  } else {  // llama-3.1-8b
    c.model_type = "llama";
    c.num_layers = 32;
    c.intermediate_size = 14336;
    c.vocab_size = 128256;
    c.rope.theta = 5e5;
  }
  c.max_position_embeddings = context + kBlockTokens;
  return c;
}

namespace {

// Hadamard transforms and metrics that weigh all channels alike: no fit, but a fit's work.
absl::StatusOr<std::shared_ptr<const KvCodec>> UnfittedShaped(const KvCodec& hadamard,
                                                              bool symmetric) {
  const kernels::KvShape& shape = hadamard.shape();
  const int d = shape.head_dim;
  ShapedParameters p;
  p.shape = shape;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
      ShapedSide s;
      for (int h = 0; h < shape.num_kv_heads; ++h) {
        const float* m = side == kernels::Side::kKey ? hadamard.KeyRotation(layer, h)
                                                     : hadamard.ValueRotation(layer, h);
        s.transform.insert(s.transform.end(), m, m + d * d);
        for (int i = 0; i < d * d; ++i) s.metric.push_back(i % (d + 1) == 0 ? 1.0f : 0.0f);
      }
      s.mean.assign(size_t{1} * shape.num_kv_heads * d, 0);
      p.sides.push_back(std::move(s));
    }
  }
  ShapedOptions options;
  options.symmetric = symmetric;
  return ShapedCodec::Create(p, options, "unfitted");
}

}  // namespace

absl::StatusOr<std::shared_ptr<const KvCodec>> DataFreeCodec(Profile profile,
                                                             const kernels::KvShape& shape) {
  if (IsShaped(profile)) {
    ASSIGN_OR_RETURN(const auto hadamard, DataFreeCodec(Profile::kOscar, shape));
    return UnfittedShaped(*hadamard, profile == Profile::kShapedSym);
  }
  CodecOptions options;
  options.profile = profile;
  options.data_free = profile != Profile::kBf16;
  return CreateCodec(options, shape);
}

absl::StatusOr<std::vector<int>> Numbers(absl::string_view option,
                                         const std::vector<std::string>& texts, int most) {
  std::vector<int> numbers;
  for (const std::string& text : texts) {
    int n = 0;
    if (!absl::SimpleAtoi(text, &n) || n < 1 || n > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", option, ": \"", text, "\" is not a number of 1 to ", most));
    }
    numbers.push_back(n);
  }
  if (numbers.empty()) return absl::InvalidArgumentError(absl::StrCat("--", option, " is empty"));
  return numbers;
}

double Median(std::vector<float> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

absl::StatusOr<std::unique_ptr<EmptyPool>> EmptyPool::Create(const kernels::KvShape& shape,
                                                             size_t pages, size_t blocks) {
  const size_t page_bytes = pages * shape.PageBytes(),
               block_bytes = blocks * shape.Bf16BlockBytes();
  void* memory = mmap(nullptr, page_bytes + block_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return absl::ResourceExhaustedError("no address space for the pool");
  auto* start = static_cast<uint8_t*>(memory);
  return std::unique_ptr<EmptyPool>(new EmptyPool(shape, absl::MakeSpan(start, page_bytes),
                                                  absl::MakeSpan(start + page_bytes, block_bytes)));
}

EmptyPool::~EmptyPool() {
  munmap(pages_.data(), pages_.size() + blocks_.size());
}

}  // namespace oscarkv::cli
