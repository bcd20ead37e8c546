// Runs a model: prefill of chunks and decode steps over sequences whose KV lies in a KvPool.
//
// Semantics (docs/block_format.md): the query at position t attends the sink (block 0) in bf16,
// blocks [1, FirstWindowBlock(t)) as their 2-bit pages, the rest in bf16. With the bf16 profile
// every block stays bf16. As soon as a block (after the sink) is full, the runner encodes its page;
// the owner of the sequence decides when the bf16 copy may go.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "codec/codec.h"
#include "kernels/gemm/gemm.h"
#include "model/kv_pool.h"
#include "model/model_config.h"

namespace oscarkv {

enum class PrefillHistory {
  kExact,      // inside a prompt everything is attended unquantised (as OSCAR does)
  kCanonical,  // as decode does: blocks out of the window are attended as their encode-decode
               // copies
};

struct PrefillChunk {
  absl::Span<const int32_t> tokens;  // at positions [start, start + size)
  int start = 0;
  SequenceKv* kv = nullptr;  // blocks of positions < start filled (page or bf16 as available);
                             // slots of this chunk's blocks present: bf16 for each, pages for those
                             // it completes (profile not kBf16, block >= 1)
  // Called after a layer's K, V and pages of this chunk are final, from the calling thread; may be
  // empty.
  std::function<void(int layer)> on_layer;
  // Looked at between layers; when it becomes true, Prefill returns kCancelled and the chunk's
  // slots hold anything. May be null.
  const std::atomic<bool>* cancelled = nullptr;
  // Called with the logits [vocab] of each row of the chunk in order, from `logits_from` on or a
  // few rows before. May be empty.
  std::function<void(int row, const float* logits)> on_logits;
  int logits_from = 0;
  bool want_logits = false;      // of the last token
  bool want_all_argmax = false;  // argmax of every position (golden checks)
};

struct PrefillOutput {
  std::vector<float> logits;        // [vocab]
  std::vector<int32_t> all_argmax;  // [tokens]
  std::vector<float> all_top_gap;   // [tokens]: logit of the best minus that of the second
};

// How bytes travel between a pool's host memory and a GPU.
enum class PoolStaging {
  kNone,        // there is no GPU
  kPageLocked,  // the GPU reads and writes it by itself, while other work goes on
  kPageable,    // the driver copies through memory of its own, and the caller waits
};
struct PreparedPool {
  std::shared_ptr<void> hold;  // goes before the pool's memory does; may be null
  PoolStaging staging = PoolStaging::kNone;
};

struct DecodeInput {
  int32_t token = 0;
  int position = 0;          // where `token` stands; its K and V are written there
  SequenceKv* kv = nullptr;  // bf16 slot of block position/64 present; page slot too when position
                             // % 64 == 63 (and it is coded)
};

// Not thread-safe: one thread runs it at a time; several runners may share weights' memory
// (Transformer::Clone is not needed: one per process).
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const KvCodec& codec() const = 0;
  virtual PrefillHistory prefill_history() const = 0;
  virtual absl::StatusOr<PrefillOutput> Prefill(const PrefillChunk& chunk) = 0;
  // logits: [batch][vocab], resized. A sequence whose K or V became Inf or NaN gets NaN logits; the
  // others go on.
  virtual absl::Status DecodeStep(absl::Span<const DecodeInput> batch,
                                  std::vector<float>* logits) = 0;

  // A runner on a GPU works on copies of the pool's slots in device memory. It takes up by itself
  // what was put into a slot's host memory since the slot was allocated and before it was first
  // used here, and it brings back by itself, in the form in which a block is stored (its page, else
  // its bf16 rows), every block that a chunk completes, layer by layer before on_layer, and both
  // forms of a block that a decode step completes. The other rows come by this: when it returned,
  // the bf16 rows of `block`, if it has such a slot, stand in the pool's memory.
  virtual absl::Status ToHost(const SequenceKv& kv, int block) { return absl::OkStatus(); }
  // Prepares for a pool, which would otherwise happen when it is first used: device memory for its
  // slots (kResourceExhausted: there is not so much), and page-locks its host memory, where that is
  // allowed, for as long as the result's `hold` lives.
  virtual absl::StatusOr<PreparedPool> PreparePool(KvPool& pool) { return PreparedPool(); }
};

struct TransformerOptions {
  kernels::Compute compute = kernels::Compute::kBf16;
  kernels::Backend backend = kernels::Backend::kCpu;
  // "cpu", or "cuda:N": GPU N, products of bf16 operands with fp32 sums.
  std::string device = "cpu";
  PrefillHistory history = PrefillHistory::kExact;
  int threads = 1;  // for attention and matrix products
  // Keeps K and V in fp32 during prefill instead of bf16, for comparisons with fp32 goldens; no
  // pages, no decode over them.
  bool fp32_kv = false;
  std::function<void(double)> progress;  // share of the weights loaded, 0..1; may be empty
};

// The N of "cuda:N"; -1 for "cpu". kInvalidArgument for anything else.
absl::StatusOr<int> ParseDevice(absl::string_view device);

// A GPU as the one who places a worker on a machine sees it.
struct GpuInfo {
  std::string pci_id;  // "0000:3b:00.0"; empty: the driver does not say
  uint64_t free_bytes = 0, total_bytes = 0;
};
// Of "cuda:N"; makes it the calling thread's device. kUnavailable: it cannot be had.
absl::StatusOr<GpuInfo> DescribeGpu(absl::string_view device);

// Loads a Hugging Face folder; folds the codec's value rotation into W_V and W_O in float64.
// kUnavailable: the device cannot be had; the message names the library or driver that is missing.
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadTransformer(const std::string& model_dir,
                                                             std::shared_ptr<const KvCodec> codec,
                                                             const TransformerOptions& options);

// Digest of what decides a model's K and V: the shape fields of config.json, tensor names, types,
// shapes and bytes.
absl::StatusOr<Sha256Digest> ModelFingerprint(const std::string& model_dir);

}  // namespace oscarkv
