// Calibration: prompts through the model's prefill, statistics of what attention consumes, fitted
// transforms. The logic of `oscarkv calibrate`.
//
// Memory, prompt by prompt: the model, one prompt's activations of one layer, and the statistics;
// nothing grows with the number of tokens. A model that does not fit goes layer by layer over all
// prompts: one layer of it at a time, the hidden states of all prompts, and the statistics. The
// result is the same to the bit, which way it was.
//
// With a checkpoint file the statistics are written every few prompts, or with the hidden states
// after every layer, and a run that was cut short goes on from there, to the same result. The same
// texts, options and seed give the same files on one machine; on another CPU low bits of the
// activations, and so of the fits, may differ.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/fit.h"
#include "codec/rotation_zoo.h"
#include "eval/activation_stats.h"
#include "eval/text_stream.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv {

struct Collected;

struct CollectOptions {
  std::string model_dir;
  std::vector<std::string> text_files;
  PromptPlan plan;
  bool weighted_values = false;  // a second pass, for OSCAR's fit of V
  bool importance = false;       // rows by what attention makes of them, for profile shaped
  // Profile shaped is fitted to prompts that start below this position, too (0: to those that are
  // there; ActivationStats::SpreadOverPositions).
  int context = 0;
  kernels::Compute compute = kernels::Compute::kBf16;
  int threads = 1;
  int sample_rows = 256;        // per layer and kv head, of K and of V
  std::string checkpoint_file;  // empty: none
  int checkpoint_every = 4;     // prompts; by layers: every layer
  // kAuto: layer by layer where prompt by prompt would take more than 3/4 of `available_bytes` (0:
  // nobody knows, then never); a checkpoint is gone on with in the way in which it was begun.
  enum class Order { kAuto, kPrompts, kLayers };
  Order order = Order::kAuto;
  uint64_t available_bytes = 0;
  // Before the passes begin: what of Collected is known by then, all but the sums.
  std::function<void(const Collected&)> on_plan = nullptr;
  std::function<void(double)> progress = nullptr;  // share of all prompts, 0..1; may be empty
};

// At most, in bytes.
struct CalibrationMemory {
  uint64_t model = 0;        // all of it, and what it takes to read it
  uint64_t layer = 0;        // one layer, likewise
  uint64_t hidden = 0;       // of all prompts, between two layers
  uint64_t activations = 0;  // of the longest prompt in a layer
  uint64_t statistics = 0;   // with checkpoints: and their images
  uint64_t program = 0;      // this process without all of that, its libraries and the tokenizer
  uint64_t ByPrompts() const { return model + activations + statistics + program; }
  uint64_t ByLayers() const { return layer + hidden + activations + statistics + program; }
};

struct Collected {
  std::unique_ptr<ActivationStats> stats;
  bool by_layers = false;  // how it was done
  CalibrationMemory memory;
  int prompts = 0;
  int64_t tokens = 0;
  // [layer][kv_head]: [d, d], W_O,h^T W_O,h summed over the group's query heads: what an error of a
  // value is worth.
  std::vector<std::vector<double>> output_gram;
  std::map<std::string, std::string> provenance;  // for the files' metadata
};
// That of a model's folder, as in Collected.
absl::StatusOr<std::vector<std::vector<double>>> OutputGrams(const std::string& model_dir,
                                                             const ModelConfig& config);

// kFailedPrecondition: the checkpoint file belongs to another run, or was begun in another order.
absl::StatusOr<Collected> CollectStats(const CollectOptions& options);

// What the fit of one side of a layer says, for people.
struct SideSummary {
  double error = 0;      // max |M^T M - I|, or max |A A^-1 - I|
  double condition = 0;  // of the transform (1 for a rotation)
  Spectrum spectrum;     // of the covariance fitted (the worst head's rank and condition)
  double damage_before = 0, damage_after = 0;   // Hadamard and this fit, on the sample
  std::vector<double> head_before, head_after;  // of each kv head; those above are their means
  void AddHead(double before, double after);
};
struct LayerSummary {
  SideSummary sides[2];  // K, V
};
// A table, and a line for each layer whose covariance lacks rank.
std::string FormatSummary(const std::vector<LayerSummary>& layers, int head_dim);

// The damage of profile oscar with a data-free rotation, the baseline of every fit: of an error of
// the rows over the energy of the rows about their mean, both in the metric of what consumes them.
double HadamardDamage(const Collected& collected, int layer, int head, kernels::Side side);

struct OscarFiles {
  RotationSet keys, values;
  std::vector<double> key_eigenvalues, value_eigenvalues;  // [layers][heads or 1][d]
  std::vector<LayerSummary> summary;
};
// One rotation per layer, or per layer and kv head. `clip`: K, V, for the damage.
absl::StatusOr<OscarFiles> FitOscarProfile(const Collected& collected, bool per_head,
                                           const float clip[2]);

}  // namespace oscarkv
