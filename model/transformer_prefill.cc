// Prefill of a chunk. Per layer: (1) earlier blocks are copied or decoded, and the chunk's tiles
// computed, rounded, stored and encoded, into one contiguous run of K and V per head; (2) on_layer;
// (3) attention; (4) the rest of the layer, tile by tile.
//
// Of the last layer only what the caller asked for is computed after its K and V: nothing, the last
// tile, or all.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/transformer.h"

namespace oscarkv {
namespace {

absl::Status FromKernel(kernels::KernelStatus status, int layer) {
  switch (status) {
    case kernels::KernelStatus::kOk:
      return absl::OkStatus();
    case kernels::KernelStatus::kNonFinite:
      return absl::InternalError(
          absl::StrCat("layer ", layer, ": prefill attention met Inf or NaN"));
    case kernels::KernelStatus::kUnsupported:
      return absl::UnimplementedError(
          "this backend's prefill attention does not support the model's shape");
    case kernels::KernelStatus::kDevice:  // not from this backend
      break;
  }
  return absl::InternalError("unknown kernel status");
}

}  // namespace

absl::StatusOr<PrefillOutput> Transformer::Prefill(const PrefillChunk& chunk) {
  RETURN_IF_ERROR(CheckChunk(config_, chunk));
  if (options_.fp32_kv && chunk.start != 0) {
    return absl::UnimplementedError(
        "with fp32 K and V a prompt is one chunk: nothing is kept between calls");
  }
  if (!options_.fp32_kv) RETURN_IF_ERROR(CheckSlots(*codec_, options_.history, chunk));
  Pass pass = PlanPass(chunk);
  rope_.Ensure(pass.end - 1);
  EmbedTokens(chunk.tokens, pass.x.data());
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    if (chunk.cancelled != nullptr && chunk.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("prefill was cancelled");
    }
    RETURN_IF_ERROR(RunLayer(layer, &pass));
  }
  PrefillOutput out;
  if (chunk.want_logits) {
    out.logits.resize(config_.vocab_size);
    const float* last = pass.x.data() + (chunk.tokens.size() - 1) * config_.hidden_size;
    Logits(last, 1, &pool_, &workspaces_[0], out.logits.data());
  }
  if (chunk.on_logits) LogitsOfTiles(pass);
  if (chunk.want_all_argmax) ArgmaxOfAll(pass, &out);
  return out;
}

Transformer::Pass Transformer::PlanPass(const PrefillChunk& chunk) const {
  Pass pass;
  const int tokens = static_cast<int>(chunk.tokens.size());
  pass.chunk = &chunk;
  pass.end = chunk.start + tokens;
  for (int row = 0; row < tokens;) {
    const int position = chunk.start + row;
    const int rows = std::min(tokens - row, kBlockTokens - position % kBlockTokens);
    pass.tiles.push_back({row, rows, position});
    row += rows;
  }
  if (coded() && !options_.fp32_kv && options_.history == PrefillHistory::kCanonical) {
    pass.history_end = FirstWindowBlock(pass.end - 1);
    if (pass.history_end == kSinkBlocks) pass.history_end = 0;
  }
  pass.head_stride = int64_t{BlockOf(pass.end - 1) + 1} * kBlockTokens * config_.head_dim;
  pass.x.resize(static_cast<size_t>(tokens) * config_.hidden_size);
  pass.q.resize(static_cast<size_t>(tokens) * config_.num_heads * config_.head_dim);
  pass.out.resize(pass.q.size());
  return pass;
}

absl::Status Transformer::ForTiles(int n, const std::function<absl::Status(int, Workspace*)>& f) {
  std::vector<absl::Status> status(n);
  std::atomic<int> next{0};
  pool_.ParallelFor(std::min(n, pool_.num_threads()), [&](int worker) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
      status[i] = f(i, &workspaces_[worker]);
  });
  for (const absl::Status& s : status) RETURN_IF_ERROR(s);
  return absl::OkStatus();
}

absl::Status Transformer::RunLayer(int layer, Pass* pass) {
  RETURN_IF_ERROR(FillLayer(layer, pass));
  if (pass->chunk->on_layer) pass->chunk->on_layer(layer);
  return Attend(layer, pass);
}

absl::Status Transformer::FillLayer(int layer, Pass* pass) {
  const PrefillChunk& chunk = *pass->chunk;
  const size_t elements = config_.num_kv_heads * pass->head_stride;
  // Sizes are the same in every layer; rows after the last token stay what they are, masked by the
  // attention.
  for (auto* v : {&exact_.k, &exact_.v}) v->resize(options_.fp32_kv ? 0 : elements);
  for (auto* v : {&history_.k, &history_.v}) v->resize(pass->history_end > 0 ? elements : 0);
  for (auto* v : {&exact_.k32, &exact_.v32}) v->resize(options_.fp32_kv ? elements : 0);
  const int earlier =
      (chunk.start + kBlockTokens - 1) / kBlockTokens;  // the last of them perhaps in part
  RETURN_IF_ERROR(ForTiles(
      earlier, [&](int block, Workspace* ws) { return FillFromHistory(layer, block, *pass, ws); }));
  RETURN_IF_ERROR(ForTiles(static_cast<int>(pass->tiles.size()), [&](int i, Workspace* ws) {
    return FillFromTile(layer, pass->tiles[i], pass, ws);
  }));
  if (layer_observer_) {
    layer_observer_(layer, {static_cast<int>(chunk.tokens.size()), pass->q.data(),
                            options_.fp32_kv ? exact_.k32.data() : nullptr,
                            options_.fp32_kv ? exact_.v32.data() : nullptr, pass->head_stride});
  }
  return absl::OkStatus();
}

void Transformer::CopyBlock(const kernels::Bf16* block_layer, int block, int rows, const Pass& pass,
                            Contiguous* to) const {
  const int64_t d = config_.head_dim, at = block * kBlockTokens * d;
  const size_t side = config_.kv_shape().Bf16SideElements();
  for (int h = 0; h < config_.num_kv_heads; ++h) {
    const kernels::Bf16* from = block_layer + h * kBlockTokens * d;
    std::memcpy(to->k.data() + h * pass.head_stride + at, from, rows * d * sizeof(kernels::Bf16));
    std::memcpy(to->v.data() + h * pass.head_stride + at, from + side,
                rows * d * sizeof(kernels::Bf16));
  }
}

absl::Status Transformer::FillFromHistory(int layer, int block, const Pass& pass, Workspace* ws) {
  const SequenceKv& kv = *pass.chunk->kv;
  const BlockSlots slots = kv.at(block);
  const int rows = std::min(kBlockTokens, pass.chunk->start - block * kBlockTokens);
  // A block that the chunk continues becomes codes only when FillFromTile completes it.
  const bool as_codes = rows == kBlockTokens && block >= kSinkBlocks && block < pass.history_end;
  // With history, the original of a block is read only by tiles near it.
  const bool as_exact =
      pass.history_end == 0 || block < kSinkBlocks || block >= FirstWindowBlock(pass.chunk->start);
  if (as_codes || slots.block < 0) {
    ws->Reserve(config_, 1);
    RETURN_IF_ERROR(
        codec_->DecodeLayer(layer, kv.pool().page_layer(slots.page, layer), ws->block.data()));
    if (as_codes) CopyBlock(ws->block.data(), block, rows, pass, &history_);
  }
  if (as_exact) {
    const kernels::Bf16* from =
        slots.block >= 0 ? kv.pool().block_layer(slots.block, layer) : ws->block.data();
    CopyBlock(from, block, rows, pass, &exact_);
  }
  return absl::OkStatus();
}

absl::Status Transformer::FillFromTile(int layer, const Tile& tile, Pass* pass, Workspace* ws) {
  const int64_t d = config_.head_dim, kv_width = config_.num_kv_heads * d;
  int32_t positions[kBlockTokens];
  for (int i = 0; i < tile.rows; ++i) positions[i] = tile.position + i;
  AttentionInputs(layer, pass->x.data() + int64_t{tile.first} * config_.hidden_size, positions,
                  tile.rows, nullptr, ws,
                  pass->q.data() + int64_t{tile.first} * config_.num_heads * d);
  if (options_.fp32_kv) {
    for (int i = 0; i < tile.rows; ++i) {
      for (int h = 0; h < config_.num_kv_heads; ++h) {
        const int64_t to = h * pass->head_stride + (tile.position + i) * d,
                      from = i * kv_width + h * d;
        std::memcpy(exact_.k32.data() + to, ws->k.data() + from, d * sizeof(float));
        std::memcpy(exact_.v32.data() + to, ws->v.data() + from, d * sizeof(float));
      }
    }
    return absl::OkStatus();
  }
  const SequenceKv& kv = *pass->chunk->kv;
  const int block = BlockOf(tile.position);
  kernels::Bf16* stored = kv.pool().block_layer(kv.at(block).block, layer);
  for (int i = 0; i < tile.rows; ++i) {
    StoreRow(ws->k.data() + i * kv_width, ws->v.data() + i * kv_width, positions[i] % kBlockTokens,
             stored);
  }
  // Rows before the tile's were copied by FillFromHistory: copying them again changes nothing.
  CopyBlock(stored, block, (tile.position + tile.rows - 1) % kBlockTokens + 1, *pass, &exact_);
  if (!coded() || block < kSinkBlocks || (tile.position + tile.rows) % kBlockTokens != 0)
    return absl::OkStatus();
  uint8_t* page = kv.pool().page_layer(kv.at(block).page, layer);
  if (const absl::Status s = codec_->EncodeLayer(layer, stored, page); !s.ok()) {
    return absl::InternalError(absl::StrCat("layer ", layer, ", block ", block, ": ", s.message()));
  }
  if (block < pass->history_end) {
    RETURN_IF_ERROR(codec_->DecodeLayer(layer, page, ws->block.data()));
    CopyBlock(ws->block.data(), block, kBlockTokens, *pass, &history_);
  }
  return absl::OkStatus();
}

absl::Status Transformer::Attend(int layer, Pass* pass) {
  const PrefillChunk& chunk = *pass->chunk;
  int first_tile = 0;
  if (layer == config_.num_layers - 1 && !chunk.want_all_argmax) {
    if (!chunk.want_logits && !chunk.on_logits) return absl::OkStatus();
    first_tile =
        chunk.on_logits ? FirstLogitsTile(*pass) : static_cast<int>(pass->tiles.size()) - 1;
  }
  const Tile& first = pass->tiles[first_tile];
  const int64_t q_width = int64_t{config_.num_heads} * config_.head_dim;
  const bool fp32 = options_.fp32_kv, history = pass->history_end > 0;
  kernels::PrefillAttentionArgs args;
  args.head_dim = config_.head_dim;
  args.num_kv_heads = config_.num_kv_heads;
  args.group = config_.num_heads / config_.num_kv_heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  args.start = first.position;
  args.num_queries = pass->end - first.position;
  args.type = fp32 ? kernels::KvType::kFp32 : kernels::KvType::kBf16;
  args.q = pass->q.data() + first.first * q_width;
  args.out = pass->out.data() + first.first * q_width;
  args.k_exact = fp32 ? static_cast<const void*>(exact_.k32.data()) : exact_.k.data();
  args.v_exact = fp32 ? static_cast<const void*>(exact_.v32.data()) : exact_.v.data();
  args.k_history = history ? history_.k.data() : nullptr;
  args.v_history = history ? history_.v.data() : nullptr;
  args.head_stride = pass->head_stride;
  args.window_blocks = kWindowBlocks;
  RETURN_IF_ERROR(FromKernel(kernels::PrefillAttention(options_.backend, args, &pool_), layer));
  return ForTiles(static_cast<int>(pass->tiles.size()) - first_tile, [&](int i, Workspace* ws) {
    const Tile& tile = pass->tiles[first_tile + i];
    AttentionOutputs(layer, pass->out.data() + tile.first * q_width, tile.rows, nullptr, ws,
                     pass->x.data() + int64_t{tile.first} * config_.hidden_size);
    return absl::OkStatus();
  });
}

int Transformer::FirstLogitsTile(const Pass& pass) {
  const int last = static_cast<int>(pass.tiles.size()) - 1;
  int tile = 0;
  while (tile < last && pass.tiles[tile + 1].first <= pass.chunk->logits_from) ++tile;
  return tile;
}

void Transformer::LogitsOfTiles(const Pass& pass) {
  std::vector<float> logits(static_cast<size_t>(kBlockTokens) * config_.vocab_size);
  for (size_t t = FirstLogitsTile(pass); t < pass.tiles.size(); ++t) {
    const Tile& tile = pass.tiles[t];
    Logits(pass.x.data() + int64_t{tile.first} * config_.hidden_size, tile.rows, &pool_,
           &workspaces_[0], logits.data());
    for (int i = 0; i < tile.rows; ++i)
      pass.chunk->on_logits(tile.first + i, logits.data() + int64_t{i} * config_.vocab_size);
  }
}

void Transformer::ArgmaxOfAll(const Pass& pass, PrefillOutput* out) {
  const int vocab = config_.vocab_size;
  out->all_argmax.resize(pass.chunk->tokens.size());
  out->all_top_gap.resize(pass.chunk->tokens.size());
  std::vector<float> logits(static_cast<size_t>(kBlockTokens) * vocab);
  for (const Tile& tile : pass.tiles) {
    Logits(pass.x.data() + int64_t{tile.first} * config_.hidden_size, tile.rows, &pool_,
           &workspaces_[0], logits.data());
    for (int i = 0; i < tile.rows; ++i) {
      const float* row = logits.data() + int64_t{i} * vocab;
      const int best = static_cast<int>(std::max_element(row, row + vocab) - row);
      float second = -std::numeric_limits<float>::infinity();
      for (int v = 0; v < vocab; ++v) {
        if (v != best) second = std::max(second, row[v]);
      }
      out->all_argmax[tile.first + i] = best;
      out->all_top_gap[tile.first + i] = row[best] - second;
    }
  }
}

}  // namespace oscarkv
