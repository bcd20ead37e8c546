#include "tests/fakes/chain_runner.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint64_t kSeed = 0x9e3779b97f4a7c15;
uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ (b + kSeed + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9;
  x ^= x >> 29;
  return x * 0x94d049bb133111eb ^ (x >> 32);
}
uint64_t Next(uint64_t state, int32_t token) {
  return Mix(state, static_cast<uint64_t>(token) + 1);
}

// What stands for a block in the logits, and what the next block starts from.
struct Digest {
  uint64_t sum = kSeed;
  uint64_t last = 0;
};
void Add(uint64_t state, Digest* digest) {
  *digest = {Mix(digest->sum, state), state};
}

// A state in a row of one (layer, side, head): four 16-bit words that differ per place, so that a
// row copied to a wrong place shows.
uint64_t Salt(int layer, int side, int head) {
  return Mix(kSeed, 1 + layer * 64 + side * 32 + head);
}

kernels::Bf16* Row(const kernels::KvShape& shape, kernels::Bf16* layer, int side, int head,
                   int token) {
  return layer +
         (size_t{1} * (side * shape.num_kv_heads + head) * kBlockTokens + token) * shape.head_dim;
}

void WriteRowLayer(const kernels::KvShape& shape, int layer, kernels::Bf16* base, int token,
                   uint64_t state) {
  for (int side = 0; side < 2; ++side) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      const uint64_t word = state ^ Salt(layer, side, head);
      std::memcpy(Row(shape, base, side, head, token), &word, sizeof(word));
    }
  }
}

// The state of a row; places that disagree give a value that no token has.
uint64_t ReadRowLayer(const kernels::KvShape& shape, int layer, const kernels::Bf16* base,
                      int token) {
  uint64_t state = 0;
  for (int side = 0; side < 2; ++side) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      uint64_t word;
      std::memcpy(&word, Row(shape, const_cast<kernels::Bf16*>(base), side, head, token),
                  sizeof(word));
      word ^= Salt(layer, side, head);
      if (side + head == 0) state = word;
      if (word != state) return Mix(word, 0xbad);
    }
  }
  return state;
}

uint64_t ReadRow(const KvPool& pool, int32_t slot, int token) {
  const uint64_t state = ReadRowLayer(pool.shape(), 0, pool.block_layer(slot, 0), token);
  for (int layer = 1; layer < pool.shape().num_layers; ++layer) {
    const uint64_t other = ReadRowLayer(pool.shape(), layer, pool.block_layer(slot, layer), token);
    if (other != state) return Mix(other, 0xbad);
  }
  return state;
}

Digest ReadBlock(const KvPool& pool, int32_t slot, int rows) {
  Digest digest;
  for (int i = 0; i < rows; ++i) Add(ReadRow(pool, slot, i), &digest);
  return digest;
}

Digest ReadPage(const KvPool& pool, int32_t page) {
  Digest digest{0, 0};
  for (int layer = 0; layer < pool.shape().num_layers; ++layer) {
    for (int head = 0; head < pool.shape().num_kv_heads; ++head) {
      uint64_t words[2];
      std::memcpy(
          words,
          pool.page_layer(page, layer) + head * kernels::PageHeadBytes(pool.shape().head_dim),
          sizeof(words));
      words[0] ^= Salt(layer, 0, head);
      words[1] ^= Salt(layer, 1, head);
      if (layer + head == 0) digest = {words[0], words[1]};
      if (words[0] != digest.sum || words[1] != digest.last)
        return {Mix(words[0], 0xbad), Mix(words[1], 0xbad)};
    }
  }
  return digest;
}

std::vector<float> Logits(const ChainRunnerOptions& options, uint64_t digest) {
  std::vector<float> logits(options.vocab);
  for (int i = 0; i < options.vocab; ++i)
    logits[i] = static_cast<float>(Mix(digest, i) >> 40) / (1 << 24);
  return logits;
}

class ChainCodec final : public KvCodec {
 public:
  explicit ChainCodec(const ChainRunnerOptions& options)
      : profile_(options.profile), shape_(options.shape) {
    fingerprint_[0] = static_cast<uint8_t>(1 + static_cast<int>(profile_));
  }
  Profile profile() const override { return profile_; }
  const kernels::KvShape& shape() const override { return shape_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  std::string Describe() const override { return "chain"; }
  bool data_free() const override { return false; }
  const float* KeyRotation(int, int) const override { return nullptr; }
  const float* ValueRotation(int, int) const override { return nullptr; }
  uint64_t clamped_rows() const override { return 0; }

  absl::Status EncodeLayer(int layer, const kernels::Bf16* block_layer,
                           uint8_t* page_layer) const override {
    Digest digest;
    for (int i = 0; i < kBlockTokens; ++i)
      Add(ReadRowLayer(shape_, layer, block_layer, i), &digest);
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      const uint64_t words[2] = {digest.sum ^ Salt(layer, 0, head),
                                 digest.last ^ Salt(layer, 1, head)};
      std::memcpy(page_layer + head * kernels::PageHeadBytes(shape_.head_dim), words,
                  sizeof(words));
    }
    return absl::OkStatus();
  }
  absl::Status DecodeLayer(int, const uint8_t*, kernels::Bf16*) const override {
    return absl::UnimplementedError("a page does not hold its rows");
  }

 private:
  const Profile profile_;
  const kernels::KvShape shape_;
  Sha256Digest fingerprint_{};
};

// Digest of block b with `rows` rows, as decode at `position` attends it.
Digest Attend(const SequenceKv& kv, bool coded, int b, int position, int rows) {
  if (coded && b >= kSinkBlocks && b < FirstWindowBlock(position))
    return ReadPage(kv.pool(), kv.at(b).page);
  return ReadBlock(kv.pool(), kv.at(b).block, rows);
}

}  // namespace

std::shared_ptr<const KvCodec> MakeChainCodec(const ChainRunnerOptions& options) {
  return std::make_shared<ChainCodec>(options);
}

ChainRunner::ChainRunner(const ChainRunnerOptions& options)
    : options_(options), codec_(MakeChainCodec(options)) {
  config_.model_type = "chain";
  config_.num_layers = options.shape.num_layers;
  config_.num_kv_heads = config_.num_heads = options.shape.num_kv_heads;
  config_.head_dim = options.shape.head_dim;
  config_.vocab_size = options.vocab;
  config_.max_position_embeddings = options.max_context;
}

absl::StatusOr<PrefillOutput> ChainRunner::Prefill(const PrefillChunk& chunk) {
  if (before) RETURN_IF_ERROR(before(true, static_cast<int>(chunk.tokens.size()), chunk.start));
  const KvPool& pool = chunk.kv->pool();
  const bool coded = options_.profile != Profile::kBf16;
  const int end = chunk.start + static_cast<int>(chunk.tokens.size());
  // History: bf16 where there is a slot, else the page.
  std::vector<Digest> blocks;
  uint64_t state = 0;
  for (int b = 0; b * kBlockTokens < chunk.start; ++b) {
    const BlockSlots& slots = chunk.kv->at(b);
    const int rows = std::min(kBlockTokens, chunk.start - b * kBlockTokens);
    if (slots.block < 0 && slots.page < 0)
      return absl::InternalError(absl::StrCat("history block ", b, " has no slot"));
    blocks.push_back(slots.block >= 0 ? ReadBlock(pool, slots.block, rows)
                                      : ReadPage(pool, slots.page));
    state = blocks.back().last;
  }
  std::vector<uint64_t> states;
  for (int i = chunk.start; i < end; ++i) {
    state = Next(state, chunk.tokens[i - chunk.start]);
    states.push_back(state);
    if (static_cast<int>(blocks.size()) == BlockOf(i)) blocks.emplace_back();
    Add(state, &blocks.back());
  }
  for (int layer = 0; layer < options_.shape.num_layers; ++layer) {
    if (chunk.cancelled != nullptr && chunk.cancelled->load())
      return absl::CancelledError("prefill");
    for (int i = chunk.start; i < end; ++i) {
      const BlockSlots& slots = chunk.kv->at(BlockOf(i));
      if (slots.block < 0)
        return absl::InternalError(absl::StrCat("block ", BlockOf(i), " has no bf16 slot"));
      WriteRowLayer(pool.shape(), layer, pool.block_layer(slots.block, layer), i % kBlockTokens,
                    states[i - chunk.start]);
      if (!coded || BlockOf(i) < kSinkBlocks || i % kBlockTokens != kBlockTokens - 1) continue;
      if (slots.page < 0)
        return absl::InternalError(absl::StrCat("block ", BlockOf(i), " has no page slot"));
      RETURN_IF_ERROR(codec_->EncodeLayer(layer, pool.block_layer(slots.block, layer),
                                          pool.page_layer(slots.page, layer)));
    }
    if (chunk.on_layer) chunk.on_layer(layer);
    if (after_layer) after_layer(layer);
  }
  prefilled_tokens += static_cast<int>(chunk.tokens.size());
  PrefillOutput output;
  if (chunk.want_logits) {
    uint64_t digest = kSeed;
    for (const Digest& block : blocks) digest = Mix(digest, block.sum);
    output.logits = Logits(options_, digest);
  }
  return output;
}

absl::Status ChainRunner::DecodeStep(absl::Span<const DecodeInput> batch,
                                     std::vector<float>* logits) {
  if (before) RETURN_IF_ERROR(before(false, static_cast<int>(batch.size()), 0));
  const bool coded = options_.profile != Profile::kBf16;
  logits->clear();
  for (const DecodeInput& input : batch) {
    const KvPool& pool = input.kv->pool();
    const int b = BlockOf(input.position), row = input.position % kBlockTokens;
    uint64_t state = 0;
    if (input.position > 0) {
      const int previous = input.position - 1;
      state =
          Attend(*input.kv, coded, BlockOf(previous), input.position, previous % kBlockTokens + 1)
              .last;
    }
    state = Next(state, input.token);
    const BlockSlots& slots = input.kv->at(b);
    for (int layer = 0; layer < options_.shape.num_layers; ++layer) {
      WriteRowLayer(pool.shape(), layer, pool.block_layer(slots.block, layer), row, state);
      if (coded && b >= kSinkBlocks && row == kBlockTokens - 1) {
        RETURN_IF_ERROR(codec_->EncodeLayer(layer, pool.block_layer(slots.block, layer),
                                            pool.page_layer(slots.page, layer)));
      }
    }
    uint64_t digest = kSeed;
    for (int i = 0; i <= b; ++i) {
      digest = Mix(
          digest, Attend(*input.kv, coded, i, input.position, i == b ? row + 1 : kBlockTokens).sum);
    }
    const std::vector<float> row_logits = Logits(options_, digest);
    logits->insert(logits->end(), row_logits.begin(), row_logits.end());
  }
  ++steps;
  return absl::OkStatus();
}

std::vector<int32_t> ExpectedTokens(const ChainRunnerOptions& options, std::vector<int32_t> tokens,
                                    int count) {
  std::vector<int32_t> answer;
  for (int n = 0; n < count; ++n) {
    uint64_t state = 0, digest = kSeed;
    for (size_t begin = 0; begin < tokens.size(); begin += kBlockTokens) {
      Digest block;
      for (size_t i = begin; i < std::min(tokens.size(), begin + kBlockTokens); ++i) {
        state = Next(state, tokens[i]);
        Add(state, &block);
      }
      digest = Mix(digest, block.sum);
    }
    const std::vector<float> logits = Logits(options, digest);
    const auto best = std::max_element(logits.begin(), logits.end());
    answer.push_back(static_cast<int32_t>(best - logits.begin()));
    tokens.push_back(answer.back());
  }
  return answer;
}

}  // namespace oscarkv
