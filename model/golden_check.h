// Comparison of a model with golden tensors of another implementation: the logic of `oscarkv model
// check`.
//
// Two naming schemes are understood. Per prompt NAME: `NAME.ids` (i32), `NAME.logits` (f32, last
// position), and optionally `NAME.layerN.k` and `.v` (f32 [kv_heads, tokens, head_dim], K after
// q/k-norm and RoPE). Per length L: `ids_L`, `logits_last_L` and `argmax_L` (i32, of every
// position).
//
// K and V stay in fp32 and unrotated: what is checked is the model, not the cache. A golden file
// does not say how its rotary frequencies were rounded: fp32 as the models' code has them, or bf16
// where the whole model was cast and its buffers with it (the two differ by 0.4 % in the angle of
// every position). fp32 is tried first, then bf16, and the report says which one it was.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv {

struct GoldenCheckOptions {
  std::string model_dir;
  std::string golden_file;
  std::string device = "cpu";  // cuda:N: bf16 only; K and V are then those of the KV pool
  kernels::Compute compute = kernels::Compute::kFp32;
  int threads = 1;
  std::function<void(double)> progress = nullptr;  // of loading; may be empty
};

// Bounds of a pass. fp32: every difference below max_difference, and all argmaxes equal where the
// best logit leads the second by more than min_gap. bf16: the share of all positions with equal
// argmaxes.
struct GoldenBounds {
  static constexpr double kMaxDifference = 1e-3;
  static constexpr double kMinGap = 1e-3;
  static constexpr double kBf16Agreement = 0.98;
  // On a GPU K and V are those of the pool, in bf16. That alone costs models of random weights 1 to
  // 2 %: the CPU over such a pool reaches 97.7 and 97.0 % on the files of tests/golden/families.
  static constexpr double kBf16CacheAgreement = 0.96;
};

struct GoldenPrompt {
  std::string name;
  int tokens = 0;
  double max_logit_difference = 0;    // of the last position
  int positions = 0, agreeing = 0;    // argmaxes that the file gives
  int clear = 0, clear_agreeing = 0;  // those whose lead exceeds kMinGap
  struct KvDifference {
    std::string tensor;  // "layer7.k"
    double max_difference = 0;
  };
  std::vector<KvDifference> kv;
};

struct GoldenReport {
  std::vector<GoldenPrompt> prompts;
  bool bf16_rope = false;  // rotary frequencies rounded to bf16
  bool passed = false;
  std::vector<std::string> failures;  // one line each; empty when passed
  // A table for people: one line per prompt, then what failed.
  std::string ToString() const;
};

// kInvalidArgument when the file holds no prompt, or tensors that do not fit each other or the
// model.
absl::StatusOr<GoldenReport> RunGoldenCheck(const GoldenCheckOptions& options);

}  // namespace oscarkv
