// What an evaluation found: tables for people, JSON, and adding up the results of several runs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "eval/statistics.h"

namespace oscarkv {

// One value per window: means over its counted positions, and the 99th percentile of KL.
struct Divergence {
  std::vector<double> window_kl, window_nll, window_top1, window_p99;
};
// The questions about one text with hidden numbers; the same ones for every treatment.
struct NeedleScore {
  int length = 0;              // tokens
  std::vector<int> right;      // per question: 1 or 0
  std::string task = "multi";  // multi, single, copy (evaluate.h)
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
  std::vector<NeedleScore> needles;
  // Tokens of bf16's greedy continuation of each window before the first that this treatment would
  // not choose; all of them where there is none.
  std::vector<double> greedy;
  std::vector<LayerDamage> layers;  // empty for bf16 and for paths without pages
};

struct EvalReport {
  int positions = 0;
  int greedy_tokens = 0;                    // of a continuation
  std::vector<TreatmentResult> treatments;  // bf16 first

  // Tables: figures, differences from treatment oscar (or the first one behind bf16) on the same
  // windows and prompts, greedy continuations, and errors per layer.
  std::string ToTable() const;
  std::string ToJson() const;
  // kInvalidArgument: not what ToJson writes.
  static absl::StatusOr<EvalReport> FromJson(absl::string_view json);
  // Windows and prompts of another run behind those of this one. kInvalidArgument: not the same
  // treatments.
  absl::Status Add(const EvalReport& other);
};

// A treatment against another one that saw the same windows and prompts.
struct PairedComparison {
  std::string name;
  double kl_ratio = 0, loss_ratio = 0;  // loss: of perplexity over bf16's
  Interval kl_interval{}, loss_interval{};
  bool has_windows = false;                          // else the four above say nothing
  int questions = 0, only_this = 0, only_other = 0;  // right answers that the other one lacks
  Interval needle_interval{};  // of the difference of the shares of right answers
  double needle_difference() const {
    return questions == 0 ? 0 : static_cast<double>(only_this - only_other) / questions;
  }
};
PairedComparison Compare(const TreatmentResult& bf16, const TreatmentResult& baseline,
                         const TreatmentResult& treatment);

}  // namespace oscarkv
