// One decode step of a batch: every sequence contributes one row to the products and one query to
// the paged attention, which reads pages and bf16 blocks where they lie in the pool.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/transformer.h"

namespace oscarkv {
namespace {

bool AllFinite(const float* x, int64_t n) {
  // Summing differences to itself: 0 for finite values, NaN otherwise.
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] - x[i];
  return sum == 0;
}

}  // namespace

void Transformer::StoreStep(int layer, absl::Span<const DecodeInput> batch, const Workspace& ws,
                            std::vector<bool>* broken) const {
  const int64_t width = int64_t{config_.num_kv_heads} * config_.head_dim;
  for (size_t i = 0; i < batch.size(); ++i) {
    const DecodeInput& in = batch[i];
    const BlockSlots& slots = in.kv->at(BlockOf(in.position));
    const float *k = ws.k.data() + i * width, *v = ws.v.data() + i * width;
    kernels::Bf16* block = in.kv->pool().block_layer(slots.block, layer);
    if (!AllFinite(k, width) || !AllFinite(v, width)) (*broken)[i] = true;
    StoreRow(k, v, in.position % kBlockTokens, block);
    if (!CompletesPage(coded(), in.position) || (*broken)[i]) continue;
    if (!codec_->EncodeLayer(layer, block, in.kv->pool().page_layer(slots.page, layer)).ok())
      (*broken)[i] = true;
  }
}

absl::Status Transformer::PlanStep(absl::Span<const DecodeInput> batch, Step* step) {
  for (size_t i = 0; i < batch.size(); ++i) {
    const DecodeInput& in = batch[i];
    RETURN_IF_ERROR(AddSlots(coded(), i, in, &step->slots));
    step->tokens.push_back(in.token);
    step->positions.push_back(in.position);
    rope_.Ensure(in.position);
  }
  const size_t rows = batch.size();
  step->x.resize(rows * config_.hidden_size);
  step->q.resize(rows * config_.num_heads * config_.head_dim);
  step->out.resize(step->q.size());
  step->broken.assign(rows, false);
  return absl::OkStatus();
}

kernels::PagedAttentionArgs Transformer::AttentionArgs(const KvPool& pool, int layer,
                                                       Step* step) const {
  const kernels::KvShape& shape = pool.shape();
  const AttendedSlots& slots = step->slots;
  kernels::PagedAttentionArgs args;
  args.head_dim = config_.head_dim;
  args.num_kv_heads = config_.num_kv_heads;
  args.group = config_.num_heads / config_.num_kv_heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  args.num_seqs = static_cast<int>(step->tokens.size());
  args.q = step->q.data();
  args.out = step->out.data();
  args.page_pool = pool.page_base() + layer * shape.PageLayerBytes();
  args.page_stride = static_cast<int64_t>(shape.PageBytes());
  args.offsets = shape.offsets;
  args.page_ids = slots.pages.data();
  args.page_begin = slots.page_begin.data();
  args.bf16_pool = pool.block_base() + layer * shape.Bf16LayerBytes();
  args.bf16_stride = static_cast<int64_t>(shape.Bf16BlockBytes());
  args.bf16_ids = slots.blocks.data();
  args.bf16_begin = slots.block_begin.data();
  args.last_tokens = slots.last_tokens.data();
  return args;
}

absl::Status Transformer::DecodeStep(absl::Span<const DecodeInput> batch,
                                     std::vector<float>* logits) {
  logits->clear();
  if (batch.empty()) return absl::OkStatus();
  if (options_.fp32_kv)
    return absl::FailedPreconditionError("a runner with fp32 K and V keeps none to decode from");
  RETURN_IF_ERROR(CheckBatch(config_, *codec_, batch));
  Step step;
  RETURN_IF_ERROR(PlanStep(batch, &step));
  const int64_t rows = static_cast<int64_t>(batch.size());
  Workspace* ws = &workspaces_[0];
  EmbedTokens(step.tokens, step.x.data());
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    AttentionInputs(layer, step.x.data(), step.positions.data(), rows, &pool_, ws, step.q.data());
    StoreStep(layer, batch, *ws, &step.broken);
    // Inf or NaN of a broken sequence stays with it.
    const auto status = kernels::PagedAttention(
        options_.backend, AttentionArgs(batch[0].kv->pool(), layer, &step), &pool_);
    if (status == kernels::KernelStatus::kUnsupported) {
      return absl::UnimplementedError(
          "this backend's paged attention does not support the model's shape");
    }
    AttentionOutputs(layer, step.out.data(), rows, &pool_, ws, step.x.data());
  }
  logits->resize(rows * config_.vocab_size);
  Logits(step.x.data(), rows, &pool_, ws, logits->data());
  for (int64_t i = 0; i < rows; ++i) {
    if (!step.broken[i]) continue;
    std::fill_n(logits->begin() + i * config_.vocab_size, config_.vocab_size,
                std::numeric_limits<float>::quiet_NaN());
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
