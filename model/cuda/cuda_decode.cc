// One decode step of a batch on a GPU. All that changes between steps lies in device memory that
// the host fills before: tokens, positions, rows, ids and their counts. What is launched, and where
// it reads and writes, is the same for all batches of a size, so it is captured once as a graph. A
// batch is filled up to the next of a few sizes by sequences without tokens, which attend nothing
// and store nothing.
//
// Blocks that the step completes are encoded behind the graph, all layers in one launch a side:
// nothing attends their pages before four more blocks are full.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv {
namespace {

using kernels::cuda::ElementType;

// The size that a batch of n is filled up to: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ...
int BucketOf(int n) {
  for (int power = 1;; power *= 2) {
    if (n <= power) return power;
    if (power >= 2 && n <= power + power / 2) return power + power / 2;
  }
}

}  // namespace

absl::Status CudaRunner::ReserveDecode(int sequences) {
  DecodeBuffers& d = decode_;
  const int capacity = BucketOf(sequences);
  if (capacity <= d.capacity && d.page_ids.size() >= static_cast<size_t>(pool_->num_pages()) &&
      d.block_ids.size() >= static_cast<size_t>(pool_->num_blocks()))
    return absl::OkStatus();
  RETURN_IF_ERROR(device_->Synchronize());
  DropGraphs();
  d.capacity = 0;
  const Device& device = *device_;
  const size_t n = capacity, hidden = config_.hidden_size, width = config_.intermediate_size,
               qkv = q_width() + 2 * kv_width();
  for (auto* array : {&d.tokens, &d.positions, &d.last_tokens})
    RETURN_IF_ERROR(array->Reserve(device, n));
  for (auto* array : {&d.page_begin, &d.block_begin})
    RETURN_IF_ERROR(array->Reserve(device, n + 1));
  RETURN_IF_ERROR(d.page_ids.Reserve(device, std::max(1, pool_->num_pages())));
  RETURN_IF_ERROR(d.block_ids.Reserve(device, std::max(1, pool_->num_blocks())));
  RETURN_IF_ERROR(d.kv_rows.Reserve(device, n));
  RETURN_IF_ERROR(d.x.Reserve(device, n * hidden));
  RETURN_IF_ERROR(d.qkv.Reserve(device, 2 * n * qkv));
  RETURN_IF_ERROR(d.q.Reserve(device, n * q_width()));
  RETURN_IF_ERROR(d.projected.Reserve(device, n * hidden));
  RETURN_IF_ERROR(d.gate_up.Reserve(device, n * 2 * width));
  RETURN_IF_ERROR(d.logits.Reserve(device, n * config_.vocab_size));
  RETURN_IF_ERROR(d.normed.Reserve(device, 2 * n * hidden));
  RETURN_IF_ERROR(d.attention.Reserve(device, n * q_width()));
  RETURN_IF_ERROR(d.mlp.Reserve(device, n * width));
  RETURN_IF_ERROR(d.encode.Reserve(device, 2 * n * config_.num_layers));
  RETURN_IF_ERROR(d.nonfinite.Reserve(device, n * config_.num_layers));
  RETURN_IF_ERROR(d.attention.Zero());  // rows of sequences without tokens are never written
  const size_t workspace = api().PagedAttentionWorkspaceBytes(
      capacity, config_.num_kv_heads, config_.num_heads / config_.num_kv_heads, config_.head_dim);
  if (workspace == 0) return Ok(kernels::KernelStatus::kUnsupported, "paged attention");
  RETURN_IF_ERROR(d.workspace.Reserve(device, workspace));
  ASSIGN_OR_RETURN(d.host_logits, DeviceArray<float>::Create(device, n * config_.vocab_size,
                                                             DeviceArray<float>::Kind::kPinned));
  d.capacity = capacity;
  return absl::OkStatus();
}

absl::Status CudaRunner::UploadStep(absl::Span<const DecodeInput> batch, int bucket) {
  const KvPool& pool = batch[0].kv->pool();
  AttendedSlots slots;
  std::vector<int32_t> tokens(bucket, 0), positions(bucket, 0);
  std::vector<int64_t> rows(bucket, -1);
  for (size_t i = 0; i < batch.size(); ++i) {
    const DecodeInput& in = batch[i];
    RETURN_IF_ERROR(AddSlots(coded(), i, in, &slots));
    const int32_t block = in.kv->at(BlockOf(in.position)).block;
    tokens[i] = in.token;
    positions[i] = in.position;
    rows[i] = KvRow(block, in.position);
    if (in.position % kBlockTokens == 0) pool_->OwnBlock(pool, block);
  }
  for (const int32_t id : slots.pages) RETURN_IF_ERROR(pool_->TakePage(pool, id));
  for (const int32_t id : slots.blocks) RETURN_IF_ERROR(pool_->TakeBlock(pool, id));
  for (const DecodeInput& in : batch) pool_->SetBlockDirty(in.kv->at(BlockOf(in.position)).block);
  slots.page_begin.resize(bucket + 1, static_cast<int32_t>(slots.pages.size()));
  slots.block_begin.resize(bucket + 1, static_cast<int32_t>(slots.blocks.size()));
  slots.last_tokens.resize(bucket, 0);
  const DecodeBuffers& d = decode_;
  RETURN_IF_ERROR(d.tokens.Upload(tokens.data(), bucket));
  RETURN_IF_ERROR(d.positions.Upload(positions.data(), bucket));
  RETURN_IF_ERROR(d.kv_rows.Upload(rows.data(), bucket));
  RETURN_IF_ERROR(d.last_tokens.Upload(slots.last_tokens.data(), bucket));
  RETURN_IF_ERROR(d.page_begin.Upload(slots.page_begin.data(), bucket + 1));
  RETURN_IF_ERROR(d.block_begin.Upload(slots.block_begin.data(), bucket + 1));
  RETURN_IF_ERROR(d.page_ids.Upload(slots.pages.data(), slots.pages.size()));
  // Copies from memory that is not page-locked have been staged when they return: the lists may go.
  return d.block_ids.Upload(slots.blocks.data(), slots.blocks.size());
}

kernels::PagedAttentionArgs CudaRunner::AttentionArgs(int layer, int bucket) const {
  const kernels::KvShape& shape = codec_->shape();
  kernels::PagedAttentionArgs args;
  args.head_dim = config_.head_dim;
  args.num_kv_heads = config_.num_kv_heads;
  args.group = config_.num_heads / config_.num_kv_heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  args.num_seqs = bucket;
  args.q = decode_.q.data();
  args.rounded = decode_.attention.data();
  args.page_pool = pool_->pages() + layer * shape.PageLayerBytes();
  args.page_stride = pool_->page_stride();
  args.offsets = shape.offsets;
  args.page_ids = decode_.page_ids.data();
  args.page_begin = decode_.page_begin.data();
  args.bf16_pool = pool_->blocks() + layer * shape.Bf16LayerBytes();
  args.bf16_stride = pool_->block_stride();
  args.bf16_ids = decode_.block_ids.data();
  args.bf16_begin = decode_.block_begin.data();
  args.last_tokens = decode_.last_tokens.data();
  return args;
}

absl::Status CudaRunner::EnqueueLayer(int layer, int bucket, const StepParts& parts) const {
  const CudaLayer& w = weights_.layers[layer];
  const DecodeBuffers& d = decode_;
  const int64_t hidden = config_.hidden_size;
  const auto norm = [&](bool add, const float* weight, Bf16* rest) {
    if (!parts.rest) return absl::OkStatus();
    return Ok(api().AddRmsNorm(d.x.data(), {add ? d.projected.data() : nullptr}, weight,
                               config_.rms_norm_eps, bucket, hidden,
                               {d.normed.data(), ElementType::kBf16}, rest, stream()),
              "norm");
  };
  const auto multiply = [&](const Bf16* x, const CudaProduct& by, float* y) {
    return parts.products ? Multiply(x, by, bucket, y) : absl::OkStatus();
  };
  RETURN_IF_ERROR(norm(layer > 0, w.input_norm.data(), d.normed.data() + bucket * hidden));
  if (parts.products) {
    kernels::cuda::MatmulArgs product;  // its bias comes with the attention inputs
    product.x = d.normed.data();
    product.w = w.qkv.weight.data();
    product.y = {d.qkv.data(), ElementType::kFloat32};
    product.m = 2 * bucket;
    product.n = w.qkv.n;
    product.k = w.qkv.k;
    RETURN_IF_ERROR(Ok(api().Matmul(device_->matmul(), product, stream()), "matrix product"));
  }
  if (parts.rest) {
    kernels::cuda::AttentionInputArgs args = InputArgs(layer, bucket);
    args.qkv = {d.qkv.data(), ElementType::kFloat32};
    args.qkv_rest = d.qkv.data() + bucket * w.qkv.n;
    args.positions = d.positions.data();
    args.kv_row = d.kv_rows.data();
    args.q = d.q.data();
    RETURN_IF_ERROR(Ok(api().PrepareAttentionInputs(args, stream()), "attention inputs"));
  }
  if (parts.attention) {
    RETURN_IF_ERROR(
        Ok(api().RunPagedAttention(AttentionArgs(layer, bucket), d.workspace.data(), stream()),
           "paged attention"));
  }
  RETURN_IF_ERROR(multiply(d.attention.data(), w.o, d.projected.data()));
  RETURN_IF_ERROR(norm(true, w.post_norm.data(), nullptr));
  if (bucket <= kernels::cuda::kMaxFewRows && w.gate_up.bias.empty()) {
    if (parts.products) {
      kernels::cuda::MatmulArgs product;
      product.x = d.normed.data();
      product.w = w.gate_up.weight.data();
      product.y = {d.mlp.data(), ElementType::kBf16};
      product.m = bucket;
      product.n = w.gate_up.n;
      product.k = w.gate_up.k;
      product.gated = true;
      RETURN_IF_ERROR(Ok(api().Matmul(device_->matmul(), product, stream()), "matrix product"));
    }
    return multiply(d.mlp.data(), w.down, d.projected.data());
  }
  RETURN_IF_ERROR(multiply(d.normed.data(), w.gate_up, d.gate_up.data()));
  if (parts.rest) {
    RETURN_IF_ERROR(
        Ok(api().SiluGate({d.gate_up.data(), ElementType::kFloat32}, bucket,
                          config_.intermediate_size, {d.mlp.data(), ElementType::kBf16}, stream()),
           "SiLU gate"));
  }
  return multiply(d.mlp.data(), w.down, d.projected.data());
}

absl::Status CudaRunner::EnqueueStep(int bucket, const StepParts& parts) const {
  const DecodeBuffers& d = decode_;
  if (parts.rest) {
    RETURN_IF_ERROR(
        Ok(api().Embed({weights_.embedding.data(), weights_.embedding_type}, config_.vocab_size,
                       config_.hidden_size, d.tokens.data(), bucket, d.x.data(), stream()),
           "embedding"));
  }
  if (parts.attention) {
    RETURN_IF_ERROR(
        Ok(api().PlanPagedAttention(AttentionArgs(0, bucket), d.workspace.data(), stream()),
           "plan of paged attention"));
  }
  for (int layer = 0; layer < config_.num_layers; ++layer)
    RETURN_IF_ERROR(EnqueueLayer(layer, bucket, parts));
  if (parts.rest) {
    RETURN_IF_ERROR(
        Ok(api().AddRmsNorm(d.x.data(), {d.projected.data()}, weights_.final_norm.data(),
                            config_.rms_norm_eps, bucket, config_.hidden_size,
                            {d.normed.data(), ElementType::kBf16}, nullptr, stream()),
           "norm"));
  }
  return parts.products ? Multiply(d.normed.data(), weights_.lm_head, bucket, d.logits.data())
                        : absl::OkStatus();
}

// The step is run once before: that chooses the products' algorithms, loads modules and sets
// attributes, which a capture must not. Running it writes what the graph then writes again.
absl::StatusOr<kernels::cuda::Graph> CudaRunner::CaptureStep(int bucket,
                                                             const StepParts& parts) const {
  RETURN_IF_ERROR(EnqueueStep(bucket, parts));
  RETURN_IF_ERROR(device_->Synchronize());
  RETURN_IF_ERROR(Ok(api().BeginCapture(stream()), "capture"));
  const absl::Status status = EnqueueStep(bucket, parts);
  kernels::cuda::Graph graph;
  const absl::Status ended = Ok(api().EndCapture(stream(), &graph), "capture");
  if (!status.ok() && ended.ok()) api().DestroyGraph(graph);
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(ended);
  return graph;
}

absl::Status CudaRunner::RunStep(int bucket) {
  auto it = graphs_.find(bucket);
  if (it == graphs_.end()) {
    ASSIGN_OR_RETURN(const kernels::cuda::Graph graph, CaptureStep(bucket, {}));
    it = graphs_.emplace(bucket, graph).first;
  }
  return Ok(api().Launch(it->second, stream()), "decode step");
}

absl::Status CudaRunner::FinishBlocks(absl::Span<const DecodeInput> batch,
                                      std::vector<bool>* broken) {
  const KvPool& pool = batch[0].kv->pool();
  const kernels::KvShape& shape = codec_->shape();
  std::vector<size_t> encoded, completed;
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].position % kBlockTokens != kBlockTokens - 1) continue;
    completed.push_back(i);
    if (CompletesPage(coded(), batch[i].position)) encoded.push_back(i);
  }
  const size_t layers = config_.num_layers, n = encoded.size() * layers;
  std::vector<uint32_t> bad(n);
  if (n > 0) {
    std::vector<int64_t> offsets(2 * n);
    for (size_t e = 0; e < encoded.size(); ++e) {
      const DecodeInput& in = batch[encoded[e]];
      const BlockSlots slots = in.kv->at(BlockOf(in.position));
      pool_->OwnPage(pool, slots.page);
      for (size_t layer = 0; layer < layers; ++layer) {
        offsets[e * layers + layer] =
            KvRow(slots.block, 0) +
            static_cast<int64_t>(layer * shape.Bf16LayerBytes() / sizeof(Bf16));
        offsets[n + e * layers + layer] = slots.page * pool_->page_stride() +
                                          static_cast<int64_t>(layer * shape.PageLayerBytes());
      }
    }
    RETURN_IF_ERROR(decode_.encode.Upload(offsets.data(), offsets.size()));
    RETURN_IF_ERROR(decode_.nonfinite.Zero());
    RETURN_IF_ERROR(
        Encode(decode_.encode.data(), static_cast<int>(n), -1, decode_.nonfinite.data()));
    RETURN_IF_ERROR(
        Ok(api().Copy(bad.data(), decode_.nonfinite.data(), n * sizeof(uint32_t), stream()),
           "download"));
  }
  for (const size_t i : completed) {
    const BlockSlots slots = batch[i].kv->at(BlockOf(batch[i].position));
    bool copied = false;
    if (CompletesPage(coded(), batch[i].position))
      RETURN_IF_ERROR(pool_->PageToHost(pool, slots.page, stream()));
    RETURN_IF_ERROR(pool_->BlockToHost(pool, slots.block, stream(), &copied));
  }
  RETURN_IF_ERROR(device_->Synchronize());
  for (size_t e = 0; e < n; ++e) {
    if (bad[e] != 0) (*broken)[encoded[e / layers]] = true;
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::DecodeStep(absl::Span<const DecodeInput> batch,
                                    std::vector<float>* logits) {
  logits->clear();
  if (batch.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckBatch(config_, *codec_, batch));
  RETURN_IF_ERROR(device_->Enter());
  RETURN_IF_ERROR(UsePool(batch[0].kv->pool()));
  const int n = static_cast<int>(batch.size()), bucket = BucketOf(n);
  RETURN_IF_ERROR(ReserveDecode(n));
  RETURN_IF_ERROR(UploadStep(batch, bucket));
  RETURN_IF_ERROR(RunStep(bucket));
  const size_t vocab = config_.vocab_size;
  RETURN_IF_ERROR(Ok(api().Copy(decode_.host_logits.data(), decode_.logits.data(),
                                n * vocab * sizeof(float), stream()),
                     "download of logits"));
  std::vector<bool> broken(n, false);
  RETURN_IF_ERROR(FinishBlocks(batch, &broken));
  logits->assign(decode_.host_logits.data(), decode_.host_logits.data() + n * vocab);
  for (int i = 0; i < n; ++i) {
    if (broken[i])
      std::fill_n(logits->begin() + i * vocab, vocab, std::numeric_limits<float>::quiet_NaN());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> CudaRunner::TimeSteps(absl::Span<const DecodeInput> batch,
                                                         const StepParts& parts, int rounds) {
  if (batch.empty()) return absl::InvalidArgumentError("a step of no sequences");
  RETURN_IF_ERROR(CheckBatch(config_, *codec_, batch));
  RETURN_IF_ERROR(device_->Enter());
  RETURN_IF_ERROR(UsePool(batch[0].kv->pool()));
  const int bucket = static_cast<int>(batch.size());  // as it is: no part of it is filled up
  RETURN_IF_ERROR(ReserveDecode(bucket));
  RETURN_IF_ERROR(UploadStep(batch, bucket));
  ASSIGN_OR_RETURN(const kernels::cuda::Graph graph, CaptureStep(bucket, parts));
  kernels::cuda::Event from{}, to{};
  std::vector<float> ms(rounds);
  absl::Status status = Ok(api().CreateEvent(/*timing=*/true, &from), "event");
  if (status.ok()) status = Ok(api().CreateEvent(/*timing=*/true, &to), "event");
  for (int i = -3; i < rounds && status.ok(); ++i) {
    const auto run = [&]() -> absl::Status {
      RETURN_IF_ERROR(Ok(api().Record(from, stream()), "event"));
      RETURN_IF_ERROR(Ok(api().Launch(graph, stream()), "decode step"));
      RETURN_IF_ERROR(Ok(api().Record(to, stream()), "event"));
      RETURN_IF_ERROR(device_->Synchronize());
      return i < 0 ? absl::OkStatus() : Ok(api().ElapsedMs(from, to, &ms[i]), "event");
    };
    status = run();
  }
  for (const kernels::cuda::Event event : {from, to}) {
    if (event.handle != nullptr) api().DestroyEvent(event);
  }
  api().DestroyGraph(graph);
  RETURN_IF_ERROR(status);
  return ms;
}

absl::Status CudaRunner::FillPool(KvPool& pool, uint64_t seed) {
  RETURN_IF_ERROR(device_->Enter());
  RETURN_IF_ERROR(UsePool(pool));
  const kernels::KvShape& shape = codec_->shape();
  const int64_t heads = int64_t{1} * shape.num_layers * shape.num_kv_heads;
  for (int id = 0; id < pool.num_pages(); ++id) {
    RETURN_IF_ERROR(Ok(api().FillPages(pool_->pages() + id * pool_->page_stride(), heads,
                                       shape.head_dim, shape.offsets, seed + id, stream()),
                       "random pages"));
  }
  const int64_t elements = static_cast<int64_t>(shape.Bf16BlockBytes() / sizeof(Bf16));
  for (int id = 0; id < pool.num_blocks(); ++id) {
    RETURN_IF_ERROR(
        Ok(api().FillUniform({pool_->blocks() + id * pool_->block_stride(), ElementType::kBf16},
                             elements, 1.5f, seed + (uint64_t{1} << 32) * id, stream()),
           "random blocks"));
  }
  for (int id = 0; id < pool.num_pages(); ++id) pool_->OwnPage(pool, id);
  for (int id = 0; id < pool.num_blocks(); ++id) pool_->OwnBlock(pool, id);
  return device_->Synchronize();
}

}  // namespace oscarkv
