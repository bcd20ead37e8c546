// The transformer behind ModelRunner, on the CPU.
//
// A chunk or a batch runs layer by layer. Within a layer, all that concerns a token alone (norms,
// products, rotary embedding, rotation, rounding, MLP) runs over *tiles*: rows of one 64-token
// block, so that a tile's bf16 K and V fill one block slot and its thread encodes the page right
// away. Tiles are cut at multiples of 64 positions: with chunks that are cut there too, a token's K
// and V come from the same products whatever the chunk size, and are the same bits. Where rows of a
// product do not depend on each other (linear.h) any chunk, batch and number of threads will do.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/paged_attention/op.h"
#include "kernels/prefill_attention/op.h"
#include "kernels/thread_pool.h"
#include "model/model_runner.h"
#include "model/rope_tables.h"
#include "model/runner_input.h"
#include "model/transformer_weights.h"

namespace oscarkv {

class Transformer final : public ModelRunner {
 public:
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(const std::string& model_dir,
                                                           std::shared_ptr<const KvCodec> codec,
                                                           const TransformerOptions& options);

  const ModelConfig& config() const override { return config_; }
  const KvCodec& codec() const override { return *codec_; }
  PrefillHistory prefill_history() const override { return options_.history; }
  absl::StatusOr<PrefillOutput> Prefill(const PrefillChunk& chunk) override;
  absl::Status DecodeStep(absl::Span<const DecodeInput> batch, std::vector<float>* logits) override;

  // Rounds the rotary frequencies to bf16, as a model has them that was cast to bf16 as a whole.
  // For golden checks.
  void RoundRopeFrequencies();

  // What a layer's attention gets, Q and K after q/k-norm, rotary embedding and the codec's
  // transform.
  struct LayerActivations {
    int tokens = 0;
    const float* q = nullptr;                // [tokens][query heads][d]
    const float *k = nullptr, *v = nullptr;  // [kv_head][tokens][d], heads head_stride apart
    int64_t head_stride = 0;
  };
  // Called from the thread of Prefill when a layer's activations are made; k and v are null without
  // options.fp32_kv.
  using LayerObserver = std::function<void(int layer, const LayerActivations&)>;
  void set_layer_observer(LayerObserver observer) { layer_observer_ = std::move(observer); }
  // The threads that the products run on; for observers that have work of their own.
  kernels::Executor* executor() { return &pool_; }

 private:
  friend class StreamedTransformer;

  // What one tile, or one decode batch, needs beside the residual stream. Grows to the largest
  // number of rows seen.
  struct Workspace {
    void Reserve(const ModelConfig& c, int64_t rows);
    int64_t rows = 0;
    std::vector<float> normed;          // [rows, hidden]
    std::vector<float> qkv;             // [rows, (q + 2 kv heads) * d]
    std::vector<float> dense, rotated;  // [rows * (q + kv heads), d] at most
    std::vector<float> k, v;            // [rows, kv heads, d]
    std::vector<float> gate_up, mlp;    // [rows, 2 * intermediate], [rows, intermediate]
    std::vector<float> hidden;          // [rows, hidden]
    std::vector<kernels::Bf16> block;   // one layer of a block, for decoded pages
  };
  // One layer's K and V in one piece per head, for prefill attention: [kv_head][capacity][d].
  struct Contiguous {
    std::vector<kernels::Bf16> k, v;
    std::vector<float> k32, v32;  // fp32_kv
  };
  struct Tile {
    int first = 0;  // row in the chunk
    int rows = 0;
    int position = 0;  // of the first row
  };
  // The state of one Prefill call.
  struct Pass {
    const PrefillChunk* chunk = nullptr;
    int end = 0;  // position after the last token
    std::vector<Tile> tiles;
    int64_t head_stride = 0;  // elements between kv heads in Contiguous
    // Canonical: blocks [1, history_end) are read as their encode-decode copies; 0: none.
    int history_end = 0;
    std::vector<float> x;       // [tokens, hidden]: the residual stream
    std::vector<float> q, out;  // [tokens, q heads, d]
  };
  // The state of one decode step.
  struct Step {
    std::vector<int32_t> tokens, positions;
    AttendedSlots slots;
    std::vector<float> x, q, out;  // as in Pass
    std::vector<bool> broken;      // K or V is not finite
  };

  Transformer(ModelConfig config, std::shared_ptr<const KvCodec> codec,
              const TransformerOptions& options);
  // Without its weights.
  static absl::StatusOr<std::unique_ptr<Transformer>> Prepare(const std::string& model_dir,
                                                              std::shared_ptr<const KvCodec> codec,
                                                              const TransformerOptions& options);

  // transformer.cc: what prefill and decode share. Rows are independent of each other. `executor`:
  // for decode, where all rows are one batch; null within a tile.
  void EmbedTokens(absl::Span<const int32_t> tokens, float* x) const;
  // Norm, projections, q/k-norm, rotary embedding and rotation: x -> q [rows, q heads, d], ws->k
  // and ws->v.
  void AttentionInputs(int layer, const float* x, const int32_t* positions, int64_t rows,
                       kernels::Executor* executor, Workspace* ws, float* q) const;
  void NormAndTurn(const LayerWeights& w, const int32_t* positions, int64_t rows,
                   Workspace* ws) const;
  void RotateKeys(const LayerWeights& w, int64_t rows, Workspace* ws, float* q) const;
  // Output projection, MLP and both residual additions: x is updated in place.
  void AttentionOutputs(int layer, const float* attention, int64_t rows,
                        kernels::Executor* executor, Workspace* ws, float* x) const;
  // Final norm and output matrix: logits [rows, vocab].
  void Logits(const float* x, int64_t rows, kernels::Executor* executor, Workspace* ws,
              float* logits) const;
  // K and V of one row, rounded, into its place in a layer of a block.
  void StoreRow(const float* k, const float* v, int row, kernels::Bf16* block_layer) const;
  bool coded() const { return codec_->profile() != Profile::kBf16; }

  // transformer_prefill.cc
  Pass PlanPass(const PrefillChunk& chunk) const;
  absl::Status RunLayer(int layer, Pass* pass);
  // A layer's Q, K and V, up to the observer's call.
  absl::Status FillLayer(int layer, Pass* pass);
  absl::Status FillFromHistory(int layer, int block, const Pass& pass, Workspace* ws);
  absl::Status FillFromTile(int layer, const Tile& tile, Pass* pass, Workspace* ws);
  void CopyBlock(const kernels::Bf16* block_layer, int block, int rows, const Pass& pass,
                 Contiguous* to) const;
  absl::Status Attend(int layer, Pass* pass);
  // The tile that holds the first row whose logits are wanted.
  static int FirstLogitsTile(const Pass& pass);
  void LogitsOfTiles(const Pass& pass);
  void ArgmaxOfAll(const Pass& pass, PrefillOutput* out);
  absl::Status ForTiles(int n, const std::function<absl::Status(int, Workspace*)>& f);

  // transformer_decode.cc
  absl::Status PlanStep(absl::Span<const DecodeInput> batch, Step* step);
  kernels::PagedAttentionArgs AttentionArgs(const KvPool& pool, int layer, Step* step) const;
  // K and V of the step into their blocks, and the pages of blocks that it completes. A sequence
  // whose K or V is not finite is marked broken.
  void StoreStep(int layer, absl::Span<const DecodeInput> batch, const Workspace& ws,
                 std::vector<bool>* broken) const;

  const ModelConfig config_;
  const std::shared_ptr<const KvCodec> codec_;
  const TransformerOptions options_;
  kernels::ThreadPool pool_;
  TransformerWeights weights_;
  RopeTables rope_;
  LayerObserver layer_observer_;
  std::vector<Workspace> workspaces_;  // one per thread of pool_
  Contiguous exact_, history_;
};

}  // namespace oscarkv
