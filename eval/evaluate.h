// What a codec costs: perplexity, divergence from bf16 and retrieval, through the real path
// (encode, page, attention over decoded pages) with canonical history, several treatments over the
// same texts. The logic of `oscarkv eval`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "eval/report.h"
#include "eval/text_stream.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv {

struct EvalOptions {
  std::string model_dir;
  std::vector<std::string> text_files;
  // Names as MakeTreatment takes them. bf16 is always run, as what the others are compared with.
  std::vector<std::string> treatments;
  std::string fitted_dir;  // where oscar and shaped find their files; empty: the model's folder
  int windows = 6;  // of window_tokens each, chosen by the seed; 0: all of the texts; -1: none
  int window_tokens = 4096;
  int first_position = 600;  // positions before it are not counted
  // What is asked about texts with numbers in them, by names:
  //   multi   five numbers are hidden in a text, and each is asked for: four distract
  //   single  one number is hidden
  //   copy    a list of eight words with numbers, then text, then the list again, line by line
  std::vector<std::string> needle_tasks = {"multi"};
  std::vector<int> needle_lengths;
  int needles = 0;  // questions of each task and length
  // Tokens to continue each window by greedily, under bf16; the treatments are asked where they
  // would leave it. 0: not measured.
  int greedy_tokens = 0;
  uint64_t seed = 1;
  kernels::Compute compute = kernels::Compute::kBf16;
  int threads = 1;
  std::function<void(double)> progress = nullptr;  // 0..1; may be empty
};

absl::StatusOr<EvalReport> Evaluate(const EvalOptions& options);

// Divergence of `logits` from log probabilities and probabilities of a reference, all [n].
double KlDivergence(const float* reference_log, const float* reference, const float* logits, int n);
// log of the sum of exponentials.
double LogSumExp(const float* logits, int n);

}  // namespace oscarkv
