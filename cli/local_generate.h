// Prompt to answer in this process, without servers: the reference that the distributed system is
// compared with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_runner.h"
#include "model/sampler.h"

namespace oscarkv::cli {

struct LocalModelOptions {
  std::string model_dir;
  std::string profile = "oscar";
  std::string shaped_file;  // profile shaped; empty: in the model's folder
  std::string history = "exact";
  std::string device = "cpu";    // or cuda:N
  std::string compute = "auto";  // auto, fp32, bf16
  int threads = 1;
  std::function<void(double)> progress;  // loading; may be empty
};

// Loads codec and weights as a worker does.
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadLocalRunner(const LocalModelOptions& options);

struct LocalRequest {
  std::vector<int32_t> tokens;
  SamplingParams sampling;
  int max_tokens = 256;
  std::vector<int32_t> stop_tokens;
  int chunk =
      512;  // prefill chunk, a multiple of 64: as the prefill worker's, or bf16 rounding may differ
};

// Calls `on_token` for each token of the answer, stop token included.
absl::Status LocalGenerate(ModelRunner& runner, const LocalRequest& request,
                           const std::function<void(const SampledToken&)>& on_token);

}  // namespace oscarkv::cli
