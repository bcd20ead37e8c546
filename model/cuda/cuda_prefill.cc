// Prefill of a chunk on a GPU. Per layer: (1) norm, products, rotary embedding, rotation, rows into
// their blocks, pages of the blocks that fill up; (2) these start for the host while the device
// goes on; (3) attention over the pool's blocks; pages that are attended, and have no bf16 rows or
// must not show them, are expanded into a scratch first; (4) the rest of the layer. on_layer of a
// layer comes when its copies have arrived, while the next layer computes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv {
namespace {

using kernels::cuda::ElementType;

// Rows of the products at a time: bounds the buffers, and is plenty for the device.
constexpr int kTileRows = 4096;

}  // namespace

absl::StatusOr<PrefillOutput> CudaRunner::Prefill(const PrefillChunk& chunk) {
  RETURN_IF_ERROR(CheckChunk(config_, chunk));
  RETURN_IF_ERROR(CheckSlots(*codec_, history_, chunk));
  RETURN_IF_ERROR(device_->Enter());
  PrefillOutput out;
  const absl::Status status = RunPrefill(chunk, &out);
  // Also after an error: the caller may give the slots away.
  const absl::Status done = device_->Synchronize();
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(done);
  return out;
}

CudaRunner::Pass CudaRunner::PlanPrefill(const PrefillChunk& chunk) const {
  Pass pass;
  pass.chunk = &chunk;
  pass.tokens = static_cast<int>(chunk.tokens.size());
  pass.end = chunk.start + pass.tokens;
  for (int b = BlockOf(chunk.start); (b + 1) * kBlockTokens <= pass.end; ++b) {
    pass.completed.push_back(b);
    pass.num_encoded += coded() && b >= kSinkBlocks;
  }
  return pass;
}

absl::Status CudaRunner::ReservePrefill(const Pass& pass) {
  const Device& device = *device_;
  const size_t n = pass.tokens, rows = std::min(pass.tokens, kTileRows),
               hidden = config_.hidden_size, width = config_.intermediate_size,
               blocks = BlockOf(pass.end - 1) + 1;
  PrefillBuffers& p = prefill_;
  RETURN_IF_ERROR(p.tokens.Reserve(device, n));
  RETURN_IF_ERROR(p.positions.Reserve(device, n));
  RETURN_IF_ERROR(p.kv_rows.Reserve(device, n));
  RETURN_IF_ERROR(p.x.Reserve(device, n * hidden));
  RETURN_IF_ERROR(p.q.Reserve(device, n * q_width()));
  RETURN_IF_ERROR(p.attention.Reserve(device, n * q_width()));
  RETURN_IF_ERROR(p.normed.Reserve(device, 2 * rows * hidden));
  RETURN_IF_ERROR(p.qkv.Reserve(device, 2 * rows * (q_width() + 2 * kv_width())));
  RETURN_IF_ERROR(p.projected.Reserve(device, rows * hidden));
  RETURN_IF_ERROR(p.gate_up.Reserve(device, rows * 2 * width));
  RETURN_IF_ERROR(p.mlp.Reserve(device, rows * width));
  RETURN_IF_ERROR(p.logits.Reserve(device, size_t{kBlockTokens} * config_.vocab_size));
  RETURN_IF_ERROR(p.ids.Reserve(device, 3 * blocks));
  RETURN_IF_ERROR(p.encode.Reserve(device, 2 * pass.completed.size() + 1));
  return p.nonfinite.Reserve(device, pass.completed.size() + 1);
}

// Slots taken up, lists on the device.
absl::Status CudaRunner::UploadPlan(const PrefillChunk& chunk, Pass* plan) {
  Pass& pass = *plan;
  const SequenceKv& kv = *chunk.kv;
  const KvPool& pool = kv.pool();
  const int blocks = BlockOf(pass.end - 1) + 1, first = BlockOf(chunk.start);
  const int history_end =
      coded() && history_ == PrefillHistory::kCanonical ? FirstWindowBlock(pass.end - 1) : 0;
  pass.history = history_end > kSinkBlocks;
  std::vector<int32_t> exact(blocks, 0), history(blocks, 0), decoded;
  const auto decode = [&](int b) {
    decoded.push_back(kv.at(b).page);
    return ~static_cast<int32_t>(decoded.size() - 1);
  };
  for (int b = 0; b < blocks; ++b) {
    const BlockSlots slots = kv.at(b);
    const bool before = b < first, as_codes = pass.history && b >= kSinkBlocks && b < history_end;
    if (before && slots.page >= 0 && (as_codes || slots.block < 0))
      RETURN_IF_ERROR(pool_->TakePage(pool, slots.page));
    if (before && slots.block >= 0) {
      RETURN_IF_ERROR(pool_->TakeBlock(pool, slots.block));
    } else if (!before) {
      if (b == first && chunk.start % kBlockTokens != 0) {
        RETURN_IF_ERROR(pool_->TakeBlock(pool, slots.block));
      } else {
        pool_->OwnBlock(pool, slots.block);
      }
      pool_->SetBlockDirty(slots.block);
      if (CompletesPage(coded(), b * kBlockTokens + kBlockTokens - 1) && slots.page >= 0 &&
          (b + 1) * kBlockTokens <= pass.end)
        pool_->OwnPage(pool, slots.page);
    }
    if (as_codes) history[b] = decode(b);
    exact[b] = slots.block >= 0 ? slots.block : as_codes ? history[b] : decode(b);
  }
  pass.num_decoded = static_cast<int>(decoded.size());
  pass.decoded_at = 2 * blocks;
  std::vector<int32_t> ids = exact;
  ids.insert(ids.end(), history.begin(), history.end());
  ids.insert(ids.end(), decoded.begin(), decoded.end());
  RETURN_IF_ERROR(prefill_.ids.Upload(ids.data(), ids.size()));
  RETURN_IF_ERROR(
      prefill_.scratch.Reserve(*device_, decoded.size() * codec_->shape().Bf16LayerBytes()));

  std::vector<int32_t> positions(pass.tokens);
  std::vector<int64_t> rows(pass.tokens), encode;
  for (int i = 0; i < pass.tokens; ++i) {
    positions[i] = chunk.start + i;
    rows[i] = KvRow(kv.at(BlockOf(positions[i])).block, positions[i]);
  }
  RETURN_IF_ERROR(prefill_.tokens.Upload(chunk.tokens.data(), pass.tokens));
  RETURN_IF_ERROR(prefill_.positions.Upload(positions.data(), positions.size()));
  RETURN_IF_ERROR(prefill_.kv_rows.Upload(rows.data(), rows.size()));
  for (int b : pass.completed) {
    if (coded() && b >= kSinkBlocks) encode.push_back(KvRow(kv.at(b).block, 0));
  }
  for (int b : pass.completed) {
    if (coded() && b >= kSinkBlocks) encode.push_back(kv.at(b).page * pool_->page_stride());
  }
  RETURN_IF_ERROR(prefill_.encode.Upload(encode.data(), encode.size()));
  RETURN_IF_ERROR(prefill_.nonfinite.Zero());
  return device_->Synchronize();  // the vectors go
}

absl::Status CudaRunner::RunPrefill(const PrefillChunk& chunk, PrefillOutput* out) {
  RETURN_IF_ERROR(UsePool(chunk.kv->pool()));
  Pass pass = PlanPrefill(chunk);
  RETURN_IF_ERROR(ReservePrefill(pass));
  RETURN_IF_ERROR(UploadPlan(chunk, &pass));
  RETURN_IF_ERROR(Ok(api().Embed({weights_.embedding.data(), weights_.embedding_type},
                                 config_.vocab_size, config_.hidden_size, prefill_.tokens.data(),
                                 pass.tokens, prefill_.x.data(), stream()),
                     "embedding"));
  const int last = config_.num_layers - 1;
  int first_row = 0;
  const auto layer_arrived = [&](int layer) {
    RETURN_IF_ERROR(Ok(api().SynchronizeEvent(copied_[layer % 2]), "copy to the host"));
    if (chunk.on_layer) chunk.on_layer(layer);
    return absl::OkStatus();
  };
  for (int layer = 0; layer <= last; ++layer) {
    if (chunk.cancelled != nullptr && chunk.cancelled->load(std::memory_order_relaxed))
      return absl::CancelledError("prefill was cancelled");
    RETURN_IF_ERROR(PrefillInputs(layer, pass));
    RETURN_IF_ERROR(PrefillStore(layer, pass));
    if (layer == last && !chunk.want_all_argmax) {
      if (!chunk.want_logits && !chunk.on_logits) {
        first_row = pass.tokens;
      } else {
        const int wanted =
            chunk.on_logits ? std::min(chunk.logits_from, pass.tokens - 1) : pass.tokens - 1;
        // From the beginning of a tile of 64 positions.
        first_row = std::max(
            0, (chunk.start + std::max(wanted, 0)) / kBlockTokens * kBlockTokens - chunk.start);
      }
    }
    if (first_row < pass.tokens) RETURN_IF_ERROR(PrefillOutputs(layer, pass, first_row));
    if (layer > 0) RETURN_IF_ERROR(layer_arrived(layer - 1));
  }
  RETURN_IF_ERROR(layer_arrived(last));
  RETURN_IF_ERROR(CheckFinite(pass));
  return first_row < pass.tokens ? Collect(pass, first_row, out) : absl::OkStatus();
}

absl::Status CudaRunner::PrefillInputs(int layer, const Pass& pass) {
  const CudaLayer& w = weights_.layers[layer];
  const int64_t hidden = config_.hidden_size;
  for (int first = 0; first < pass.tokens; first += kTileRows) {
    const int rows = std::min(kTileRows, pass.tokens - first);
    Bf16* rest = prefill_.normed.data() + rows * hidden;
    RETURN_IF_ERROR(
        Ok(api().AddRmsNorm(prefill_.x.data() + first * hidden, {}, w.input_norm.data(),
                            config_.rms_norm_eps, rows, hidden,
                            {prefill_.normed.data(), ElementType::kBf16}, rest, stream()),
           "norm"));
    const CudaProduct& qkv = w.qkv;
    kernels::cuda::MatmulArgs product;
    product.x = prefill_.normed.data();
    product.w = qkv.weight.data();
    product.y = {prefill_.qkv.data(), ElementType::kFloat32};
    product.m = 2 * rows;
    product.n = qkv.n;
    product.k = qkv.k;
    RETURN_IF_ERROR(Ok(api().Matmul(device_->matmul(), product, stream()), "matrix product"));
    kernels::cuda::AttentionInputArgs args = InputArgs(layer, rows);
    args.qkv = {prefill_.qkv.data(), ElementType::kFloat32};
    args.qkv_rest = prefill_.qkv.data() + rows * qkv.n;
    args.positions = prefill_.positions.data() + first;
    args.kv_row = prefill_.kv_rows.data() + first;
    args.q = prefill_.q.data() + first * q_width();
    RETURN_IF_ERROR(Ok(api().PrepareAttentionInputs(args, stream()), "attention inputs"));
  }
  return absl::OkStatus();
}

// Pages of the blocks that the chunk completes; their stored form starts for the host.
absl::Status CudaRunner::PrefillStore(int layer, const Pass& pass) {
  const kernels::KvShape& shape = codec_->shape();
  const SequenceKv& kv = *pass.chunk->kv;
  if (pass.num_encoded > 0 && encodes_) {
    RETURN_IF_ERROR(
        Encode(prefill_.encode.data(), pass.num_encoded, layer, prefill_.nonfinite.data()));
  }
  RETURN_IF_ERROR(Ok(api().Record(computed_, stream()), "event"));
  RETURN_IF_ERROR(Ok(api().Wait(device_->to_host(), computed_), "event"));
  for (int b : pass.completed) {
    if (coded() && b >= kSinkBlocks) {
      RETURN_IF_ERROR(pool_->PageLayerToHost(kv.pool(), kv.at(b).page, layer, device_->to_host()));
    } else {
      RETURN_IF_ERROR(
          pool_->BlockLayerToHost(kv.pool(), kv.at(b).block, layer, device_->to_host()));
      if (layer == shape.num_layers - 1) pool_->SetBlockClean(kv.at(b).block);
    }
  }
  return Ok(api().Record(copied_[layer % 2], device_->to_host()), "event");
}

// Attention, output projection and MLP of rows from first_row on.
absl::Status CudaRunner::PrefillOutputs(int layer, const Pass& pass, int first_row) {
  const CudaLayer& w = weights_.layers[layer];
  const kernels::KvShape& shape = codec_->shape();
  const int64_t hidden = config_.hidden_size;
  if (pass.num_decoded > 0) {
    kernels::cuda::DecodePagesArgs decode;
    decode.head_dim = config_.head_dim;
    decode.num_kv_heads = config_.num_kv_heads;
    decode.num_pages = pass.num_decoded;
    decode.offsets = shape.offsets;
    decode.pages = pool_->pages() + layer * shape.PageLayerBytes();
    decode.page_stride = pool_->page_stride();
    decode.page_ids = prefill_.ids.data() + pass.decoded_at;
    decode.blocks = prefill_.scratch.data();
    decode.block_stride = static_cast<int64_t>(shape.Bf16LayerBytes());
    RETURN_IF_ERROR(Ok(api().DecodePages(decode, stream()), "expanding pages"));
  }
  kernels::cuda::PagedPrefillArgs attend;
  attend.head_dim = config_.head_dim;
  attend.num_kv_heads = config_.num_kv_heads;
  attend.group = config_.num_heads / config_.num_kv_heads;
  attend.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  attend.start = pass.chunk->start + first_row;
  attend.num_queries = pass.tokens - first_row;
  attend.window_blocks = kWindowBlocks;
  attend.q = prefill_.q.data() + first_row * q_width();
  attend.out = {prefill_.attention.data() + first_row * q_width(), ElementType::kBf16};
  attend.pool = pool_->blocks() + layer * shape.Bf16LayerBytes();
  attend.pool_stride = pool_->block_stride();
  attend.scratch = prefill_.scratch.data();
  attend.scratch_stride = static_cast<int64_t>(shape.Bf16LayerBytes());
  attend.exact_ids = prefill_.ids.data();
  attend.history_ids = pass.history ? prefill_.ids.data() + pass.decoded_at / 2 : nullptr;
  RETURN_IF_ERROR(Ok(api().PagedPrefillAttention(attend, stream()), "prefill attention"));

  for (int first = first_row; first < pass.tokens; first += kTileRows) {
    const int rows = std::min(kTileRows, pass.tokens - first);
    float* x = prefill_.x.data() + first * hidden;
    const kernels::cuda::Elements projected{prefill_.projected.data(), ElementType::kFloat32};
    const auto add = [&](const float* weight, kernels::cuda::MutableElements y) {
      return Ok(api().AddRmsNorm(x, projected, weight, config_.rms_norm_eps, rows, hidden, y,
                                 nullptr, stream()),
                "norm");
    };
    RETURN_IF_ERROR(Multiply(prefill_.attention.data() + first * q_width(), w.o, rows,
                             prefill_.projected.data()));
    RETURN_IF_ERROR(add(w.post_norm.data(), {prefill_.normed.data(), ElementType::kBf16}));
    RETURN_IF_ERROR(Multiply(prefill_.normed.data(), w.gate_up, rows, prefill_.gate_up.data()));
    RETURN_IF_ERROR(Ok(api().SiluGate({prefill_.gate_up.data(), ElementType::kFloat32}, rows,
                                      config_.intermediate_size,
                                      {prefill_.mlp.data(), ElementType::kBf16}, stream()),
                       "SiLU gate"));
    RETURN_IF_ERROR(Multiply(prefill_.mlp.data(), w.down, rows, prefill_.projected.data()));
    RETURN_IF_ERROR(add(nullptr, {}));
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::CheckFinite(const Pass& pass) const {
  std::vector<uint32_t> bad(pass.num_encoded);
  RETURN_IF_ERROR(
      Ok(api().Copy(bad.data(), prefill_.nonfinite.data(), bad.size() * sizeof(uint32_t), stream()),
         "download"));
  RETURN_IF_ERROR(device_->Synchronize());
  int b = std::max(kSinkBlocks, BlockOf(pass.chunk->start));
  for (size_t i = 0; i < bad.size(); ++i, ++b) {
    if (bad[i] != 0)
      return absl::InternalError(absl::StrCat("block ", b, ": its K or V holds Inf or NaN"));
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::LogitsOf(int first, int rows, std::vector<float>* logits) {
  const int64_t hidden = config_.hidden_size;
  RETURN_IF_ERROR(
      Ok(api().AddRmsNorm(prefill_.x.data() + first * hidden, {}, weights_.final_norm.data(),
                          config_.rms_norm_eps, rows, hidden,
                          {prefill_.normed.data(), ElementType::kBf16}, nullptr, stream()),
         "norm"));
  RETURN_IF_ERROR(Multiply(prefill_.normed.data(), weights_.lm_head, rows, prefill_.logits.data()));
  logits->resize(static_cast<size_t>(rows) * config_.vocab_size);
  RETURN_IF_ERROR(Ok(
      api().Copy(logits->data(), prefill_.logits.data(), logits->size() * sizeof(float), stream()),
      "download of logits"));
  return device_->Synchronize();
}

absl::Status CudaRunner::Collect(const Pass& pass, int first_row, PrefillOutput* out) {
  const PrefillChunk& chunk = *pass.chunk;
  const int vocab = config_.vocab_size;
  if (chunk.want_logits) RETURN_IF_ERROR(LogitsOf(pass.tokens - 1, 1, &out->logits));
  if (!chunk.on_logits && !chunk.want_all_argmax) return absl::OkStatus();
  std::vector<float> logits;
  if (chunk.want_all_argmax) {
    out->all_argmax.resize(pass.tokens);
    out->all_top_gap.resize(pass.tokens);
  }
  for (int first = first_row; first < pass.tokens;) {
    const int rows =
        std::min(pass.tokens - first, kBlockTokens - (chunk.start + first) % kBlockTokens);
    RETURN_IF_ERROR(LogitsOf(first, rows, &logits));
    for (int i = 0; i < rows; ++i) {
      const float* row = logits.data() + size_t{1} * i * vocab;
      if (chunk.on_logits && first + rows > chunk.logits_from) chunk.on_logits(first + i, row);
      if (!chunk.want_all_argmax) continue;
      const int best = static_cast<int>(std::max_element(row, row + vocab) - row);
      float second = -std::numeric_limits<float>::infinity();
      for (int v = 0; v < vocab; ++v) {
        if (v != best) second = std::max(second, row[v]);
      }
      out->all_argmax[first + i] = best;
      out->all_top_gap[first + i] = row[best] - second;
    }
    first += rows;
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
