// Random models small enough for a float64 forward pass in plain loops: the specification that the
// transformer is tested against.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/model_runner.h"
#include "model/safetensors.h"

namespace oscarkv {

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct TinyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct TinyModel {
  std::string config_json;
  ModelConfig config;
  std::map<std::string, TinyTensor> tensors;

  // config.json and model.safetensors; values are rounded to `dtype` (kF32, kBf16 or kF16) on the
  // way.
  void Write(const std::string& dir, DType dtype = DType::kF32) const;
};

// Hidden 48, 2 layers, 4 query and 2 kv heads of 64, 97 tokens; every tensor and bias that the
// family has, random. family: "qwen3", "qwen2", "llama" (with all biases) or "mistral". Values are
// exact in bf16.
TinyModel MakeTinyModel(const std::string& family, uint64_t seed);

// Logits [tokens][vocab] in float64, attention unquantised.
std::vector<std::vector<double>> NaiveLogits(const TinyModel& model,
                                             const std::vector<int32_t>& tokens);

// A pool over its own memory, and sequences in it.
class TestPool {
 public:
  TestPool(const kernels::KvShape& shape, int pages, int blocks);
  KvPool& pool() { return pool_; }
  // A sequence with slots for positions [0, tokens): bf16 for every block, pages for blocks >= 1
  // unless `coded` is false.
  SequenceKv Sequence(int tokens, bool coded);

 private:
  std::vector<uint8_t> memory_;
  KvPool pool_;
};

// Pseudo-random tokens in [0, vocab).
std::vector<int32_t> RandomTokens(int n, int vocab, uint64_t seed);

}  // namespace oscarkv
