// The passes over the prompts that gather statistics, with checkpoints. In either order a layer and
// kv head sees the prompts one after the other, so the sums are the same to the bit:
//  - prompt by prompt through the whole model; a checkpoint is the sums;
//  - layer by layer over all prompts, with one layer's weights and all prompts' hidden states in
//    memory; a checkpoint, written after every layer, is the sums and, in a file beside it, the
//    hidden states.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "eval/activation_stats.h"
#include "eval/calibrate.h"
#include "model/streamed_transformer.h"
#include "model/transformer.h"

namespace oscarkv {

class Collector {
 public:
  // What the references refer to must outlive it. `digest`: what a checkpoint must have been made
  // from to go on with.
  Collector(const CollectOptions& options, std::string digest,
            const std::vector<std::vector<int32_t>>& prompts,
            const std::vector<std::vector<double>>& output_gram, ActivationStats* stats);

  // Takes the sums from the checkpoint, if there is one: true: it was made layer by layer.
  // kFailedPrecondition: it belongs to another run.
  absl::StatusOr<std::optional<bool>> Resume();

  // One of the two, once, behind Resume; removes the checkpoint when it is done.
  absl::Status ByPrompts(Transformer* model);
  absl::Status ByLayers(StreamedTransformer* model);

 private:
  absl::Status RunPrompt(Transformer* model, const std::vector<int32_t>& tokens, bool second_pass);
  absl::Status RunLayer(int layer, StreamedTransformer* model);
  void Observe(int layer, const Transformer::LayerActivations& a, bool second_pass,
               kernels::Executor* executor);
  absl::Status EmbedOrRead(StreamedTransformer* model);
  // `crc`: of the hidden states in the order of the prompts.
  absl::Status WriteHidden(uint32_t* crc) const;
  absl::Status ReadHidden(int hidden_size);
  absl::Status WriteCheckpoint() const;
  std::string HiddenFile(int layers) const;
  void RemoveCheckpoint() const;
  void Progress(double share) const;
  int passes() const { return options_.weighted_values ? 2 : 1; }

  const CollectOptions& options_;
  const std::string digest_;
  const std::vector<std::vector<int32_t>>& prompts_;
  const std::vector<std::vector<double>>& output_gram_;
  ActivationStats* const stats_;
  bool by_layers_ = false;
  int done_ = 0, resumed_at_ = 0;           // prompts of all passes, or layers
  uint32_t hidden_crc_ = 0;                 // by layers: as the checkpoint says
  std::vector<std::vector<float>> hidden_;  // by layers: [prompt][tokens, hidden]
};

}  // namespace oscarkv
