// What a codec costs: perplexity, divergence from bf16 and retrieval, through the real path
// (encode, page, attention over decoded pages) with canonical history, several treatments over the
// same texts. The logic of `oscarkv eval`.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "eval/text_stream.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv {

struct EvalOptions {
  std::string model_dir;
  std::vector<std::string> text_files;
  // bf16 is always run, as what the others are compared with. Of: naive (no transform, no clip),
  // hadamard, oscar, shaped, shaped-sym (symmetric levels; an experiment), shaped-0 (no sweeps).
  std::vector<std::string> treatments;
  std::string fitted_dir;  // where oscar and shaped find their files; empty: the model's folder
  int windows = 6;         // of window_tokens each, chosen by the seed; 0: all of the texts
  int window_tokens = 4096;
  int first_position = 600;  // positions before it are not counted
  std::vector<int> needle_lengths;
  int needles = 0;  // prompts of each length
  uint64_t seed = 1;
  kernels::Compute compute = kernels::Compute::kBf16;
  int threads = 1;
  std::function<void(double)> progress = nullptr;  // 0..1; may be empty
};

// Over the counted positions; per window for errors of means.
struct Divergence {
  std::vector<double> window_kl, window_nll, window_top1;  // means
  std::vector<float> kl;                                   // of every position
};
struct NeedleCount {
  int length = 0, prompts = 0, right = 0;
};
// Root mean squares over the coded rows of the first window.
struct LayerDamage {
  double score = 0;  // error of q . k / sqrt(d), over queries and keys of that window: nats
  double value = 0;  // |W_O e|, of an error e of a value, over |W_O v|
};
struct TreatmentResult {
  std::string name, codec;  // codec: KvCodec::Describe()
  double bits = 16;         // per element of a coded block
  Divergence divergence;
  std::vector<NeedleCount> needles;
  std::vector<LayerDamage> layers;  // empty for bf16
};

struct EvalReport {
  int positions = 0;
  std::vector<TreatmentResult> treatments;  // bf16 first
  std::string ToTable() const;
  std::string ToJson() const;
};
absl::StatusOr<EvalReport> Evaluate(const EvalOptions& options);

// The codec of a treatment. kInvalidArgument for an unknown name; what FindCodecFiles says.
absl::StatusOr<std::shared_ptr<const KvCodec>> TreatmentCodec(const std::string& name,
                                                              const std::string& files_dir,
                                                              const kernels::KvShape& shape);

// Divergence of `logits` from log probabilities and probabilities of a reference, all [n].
double KlDivergence(const float* reference_log, const float* reference, const float* logits, int n);
// log of the sum of exponentials.
double LogSumExp(const float* logits, int n);

struct Interval {
  double low, high;
};
Interval WilsonInterval(int right, int n);  // 95 %

}  // namespace oscarkv
