// The transformer behind ModelRunner on a GPU: weights and a copy of the KV pool's slots stay in
// device memory; a decode step is one CUDA graph, captured per size of batch.
//
// What differs from the CPU's Transformer: weights and operands are bf16 whatever is asked for; a
// row of a product may differ in its last bits between sizes of chunks and batches; logits are
// copied to the host, where tokens are chosen. A device error stays: the process must start again.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device.h"
#include "model/cuda/device_pool.h"
#include "model/model_runner.h"
#include "model/rope_tables.h"
#include "model/runner_input.h"

namespace oscarkv {

class CudaRunner final : public ModelRunner {
 public:
  // Of options: device (cuda:N), compute (fp32: kUnimplemented), history, threads (of loading),
  // progress.
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Load(const std::string& model_dir,
                                                          std::shared_ptr<const KvCodec> codec,
                                                          const TransformerOptions& options);
  // Pseudo-random weights, for benchmarks.
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Random(const ModelConfig& config,
                                                            std::shared_ptr<const KvCodec> codec,
                                                            const TransformerOptions& options,
                                                            uint64_t seed);
  ~CudaRunner() override;

  const ModelConfig& config() const override { return config_; }
  const KvCodec& codec() const override { return *codec_; }
  PrefillHistory prefill_history() const override { return history_; }
  absl::StatusOr<PrefillOutput> Prefill(const PrefillChunk& chunk) override;
  absl::Status DecodeStep(absl::Span<const DecodeInput> batch, std::vector<float>* logits) override;
  absl::Status ToHost(const SequenceKv& kv, int block) override;
  absl::StatusOr<PreparedPool> PreparePool(KvPool& pool) override;

  // As Transformer::RoundRopeFrequencies, for golden checks.
  absl::Status RoundRopeFrequencies();

  const Device& device() const { return *device_; }

  // For benchmarks. What of a step a graph holds; a step without a part computes something else.
  struct StepParts {
    bool products = true, attention = true, rest = true;
    bool all() const { return products && attention && rest; }
  };
  // Runs the step of `batch` (its slots as for DecodeStep; their contents are taken as they are)
  // `rounds` times without its last copy to the host; milliseconds of each.
  absl::StatusOr<std::vector<float>> TimeSteps(absl::Span<const DecodeInput> batch,
                                               const StepParts& parts, int rounds);
  // Prefill leaves the pages of blocks that fill up as they are.
  void LeaveOutEncoding(bool leave_out) { encodes_ = !leave_out; }
  // Random contents in all slots of a pool.
  absl::Status FillPool(KvPool& pool, uint64_t seed);

 private:
  using Bf16 = kernels::Bf16;

  // Buffers of prefill, of a chunk and of kTileRows rows of it. They grow.
  struct PrefillBuffers {
    DeviceArray<int32_t> tokens, positions;
    DeviceArray<int64_t> kv_rows;
    DeviceArray<float> x, q;       // [tokens, hidden], [tokens, q heads, d]
    DeviceArray<Bf16> attention;   // [tokens, q heads, d]
    DeviceArray<Bf16> normed;      // [2 rows, hidden]: rounded, and what that lost
    DeviceArray<float> qkv;        // [2 rows, all heads, d]
    DeviceArray<float> projected;  // [rows, hidden]
    DeviceArray<float> gate_up;    // [rows, 2 intermediate]
    DeviceArray<Bf16> mlp;         // [rows, intermediate]
    DeviceArray<float> logits;     // [64, vocab]
    DeviceArray<int32_t> ids;      // exact, history, decoded pages
    DeviceArray<int64_t> encode;   // row_begin, page_begin
    DeviceArray<uint32_t> nonfinite;
    DeviceArray<uint8_t> scratch;  // decoded blocks of a layer
  };
  // The state of one Prefill call.
  struct Pass {
    const PrefillChunk* chunk = nullptr;
    int tokens = 0, end = 0;
    int num_encoded = 0;     // blocks that it completes and that get a page
    int num_decoded = 0;     // pages that are expanded
    int64_t decoded_at = 0;  // their ids in PrefillBuffers::ids
    bool history = false;
    std::vector<int> completed;  // blocks
  };
  // Buffers of decode for up to `capacity` sequences, and the graphs that hold their addresses.
  struct DecodeBuffers {
    int capacity = 0;
    DeviceArray<int32_t> tokens, positions, page_begin, block_begin, last_tokens, page_ids,
        block_ids;
    DeviceArray<int64_t> kv_rows;
    DeviceArray<float> x, qkv, q, projected, gate_up, logits;
    DeviceArray<Bf16> normed, attention, mlp;
    DeviceArray<uint8_t> workspace;  // of paged attention
    DeviceArray<int64_t> encode;
    DeviceArray<uint32_t> nonfinite;
    DeviceArray<float> host_logits;  // page-locked
  };

  CudaRunner(ModelConfig config, std::shared_ptr<const KvCodec> codec,
             const TransformerOptions& options);
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Prepare(const ModelConfig& config,
                                                             std::shared_ptr<const KvCodec> codec,
                                                             const TransformerOptions& options);

  bool coded() const { return codec_->profile() != Profile::kBf16; }
  int64_t q_width() const { return int64_t{config_.num_heads} * config_.head_dim; }
  int64_t kv_width() const { return int64_t{config_.num_kv_heads} * config_.head_dim; }
  const Device::Api& api() const { return device_->api(); }
  kernels::Stream stream() const { return device_->stream(); }
  absl::Status Ok(kernels::KernelStatus status, absl::string_view what) const {
    return device_->Check(status, what);
  }
  absl::Status SetRope(std::vector<float> inv_freq);
  // Makes pool_ the device's copy of `pool`.
  absl::Status UsePool(const KvPool& pool);
  absl::Status Multiply(const Bf16* x, const CudaProduct& w, int64_t rows, float* y) const;
  // A row of K in elements behind a layer of the pool's blocks.
  int64_t KvRow(int32_t block, int position) const;
  // Where PrepareAttentionInputs finds and puts what both prefill and decode give it.
  kernels::cuda::AttentionInputArgs InputArgs(int layer, int tokens) const;
  // Both sides of `n` blocks of one layer, or with layer -1 of all layers: (block, layer) pairs,
  // the layers of a block behind each other. Offsets on the device: n of rows in elements, then n
  // of pages in bytes, from the layer's first on.
  absl::Status Encode(const int64_t* offsets, int n, int layer, uint32_t* nonfinite) const;
  absl::Status EncodeShaped(kernels::Side side, const Bf16* rows, const int64_t* offsets, int n,
                            int layer, uint8_t* pages, uint32_t* nonfinite) const;

  // cuda_prefill.cc
  absl::Status RunPrefill(const PrefillChunk& chunk, PrefillOutput* out);
  absl::Status ReservePrefill(const Pass& pass);
  Pass PlanPrefill(const PrefillChunk& chunk) const;
  absl::Status UploadPlan(const PrefillChunk& chunk, Pass* plan);
  absl::Status PrefillInputs(int layer, const Pass& pass);
  absl::Status PrefillStore(int layer, const Pass& pass);
  absl::Status PrefillOutputs(int layer, const Pass& pass, int first_row);
  absl::Status CheckFinite(const Pass& pass) const;
  // Logits of rows [first, first + rows) on the host; at most 64 rows.
  absl::Status LogitsOf(int first, int rows, std::vector<float>* logits);
  absl::Status Collect(const Pass& pass, int first_row, PrefillOutput* out);

  // cuda_decode.cc
  absl::Status ReserveDecode(int sequences);
  absl::Status UploadStep(absl::Span<const DecodeInput> batch, int bucket);
  kernels::PagedAttentionArgs AttentionArgs(int layer, int bucket) const;
  absl::Status EnqueueStep(int bucket, const StepParts& parts) const;
  absl::Status EnqueueLayer(int layer, int bucket, const StepParts& parts) const;
  absl::StatusOr<kernels::cuda::Graph> CaptureStep(int bucket, const StepParts& parts) const;
  absl::Status RunStep(int bucket);
  absl::Status FinishBlocks(absl::Span<const DecodeInput> batch, std::vector<bool>* broken);
  void DropGraphs();

  const ModelConfig config_;
  const std::shared_ptr<const KvCodec> codec_;
  const PrefillHistory history_;
  bool encodes_ = true;             // in prefill
  std::unique_ptr<Device> device_;  // before all that lies on it
  kernels::ThreadPool threads_;     // of loading
  CudaWeights weights_;
  RopeTables rope_;
  DeviceArray<float> cos_, sin_;  // [max positions][half_dim]
  std::unique_ptr<DevicePool> pool_;
  PrefillBuffers prefill_;
  DecodeBuffers decode_;
  std::map<int, kernels::cuda::Graph> graphs_;  // by size of batch
  kernels::cuda::Event computed_{}, copied_[2]{};
};

// LoadTransformer's part for "cuda:N".
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadCudaRunner(const std::string& model_dir,
                                                            std::shared_ptr<const KvCodec> codec,
                                                            const TransformerOptions& options);

}  // namespace oscarkv
