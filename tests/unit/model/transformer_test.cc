// The runner against itself: decode against prefill, any chunk size, batch and number of threads
// against any other.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>

#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

constexpr char kQwen3[] = "tests/golden/families/qwen3";
constexpr char kLlama[] = "tests/golden/families/llama";

struct Setup {
  const char* name;
  const char* model_dir;
  Profile profile;
  PrefillHistory history;
};
const Setup kSetups[] = {
    {"qwen3_bf16", kQwen3, Profile::kBf16, PrefillHistory::kExact},
    {"llama_bf16", kLlama, Profile::kBf16, PrefillHistory::kExact},
    {"qwen3_oscar", kQwen3, Profile::kOscar, PrefillHistory::kCanonical},
    {"llama_oscar", kLlama, Profile::kOscar, PrefillHistory::kCanonical},
};

std::unique_ptr<Transformer> Load(const Setup& setup, kernels::Compute compute, int threads = 1,
                                  kernels::Backend backend = kernels::Backend::kCpu) {
  const auto config = LoadModelConfig(setup.model_dir);
  EXPECT_TRUE(config.ok()) << config.status();
  CodecOptions codec_options;
  codec_options.profile = setup.profile;
  codec_options.data_free = true;
  auto codec = CreateCodec(codec_options, config->kv_shape());
  EXPECT_TRUE(codec.ok()) << codec.status();
  TransformerOptions options;
  options.compute = compute;
  options.backend = backend;
  options.history = setup.history;
  options.threads = threads;
  auto model = Transformer::Load(setup.model_dir, *codec, options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// Prefill of tokens in chunks of `size`; the last one's output.
PrefillOutput PrefillInChunks(Transformer* model, const std::vector<int32_t>& tokens, int size,
                              SequenceKv* kv, int start = 0) {
  PrefillOutput last;
  for (int at = start; at < static_cast<int>(tokens.size()); at += size) {
    PrefillChunk chunk;
    chunk.tokens = absl::MakeConstSpan(tokens).subspan(at, size);
    chunk.start = at;
    chunk.kv = kv;
    chunk.want_logits = at + size >= static_cast<int>(tokens.size());
    auto out = model->Prefill(chunk);
    EXPECT_TRUE(out.ok()) << out.status();
    if (!out.ok()) return last;
    last = *std::move(out);
  }
  return last;
}

bool IsCoded(const Transformer& model) {
  return model.codec().profile() != Profile::kBf16;
}

int ArgMax(absl::Span<const float> x) {
  return static_cast<int>(std::max_element(x.begin(), x.end()) - x.begin());
}

// Best minus second.
float Lead(absl::Span<const float> x) {
  std::vector<float> v(x.begin(), x.end());
  std::partial_sort(v.begin(), v.begin() + 2, v.end(), std::greater<float>());
  return v[0] - v[1];
}

float MaxDifference(absl::Span<const float> a, absl::Span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

// All that a sequence has stored for [0, tokens): pages of full blocks >= 1, and the rows of bf16
// blocks.
std::string StoredBytes(const SequenceKv& kv, int tokens, bool coded) {
  const KvPool& pool = kv.pool();
  const kernels::KvShape& shape = pool.shape();
  std::string bytes;
  for (int b = 0; b <= BlockOf(tokens - 1); ++b) {
    if (coded && b >= kSinkBlocks && (b + 1) * kBlockTokens <= tokens) {
      bytes.append(reinterpret_cast<const char*>(pool.page(kv.at(b).page)), shape.PageBytes());
    }
    if (kv.at(b).block < 0) continue;
    const int rows = std::min(kBlockTokens, tokens - b * kBlockTokens);
    const int heads = shape.num_layers * 2 * shape.num_kv_heads;
    const char* block = reinterpret_cast<const char*>(pool.block(kv.at(b).block));
    for (int h = 0; h < heads; ++h)
      bytes.append(block + h * kBlockTokens * shape.head_dim * 2, rows * shape.head_dim * 2);
  }
  return bytes;
}

// Whether a row of this machine's products is the same bits whatever the number of rows beside it
// (oneDNN with AVX-512: yes; older CPUs: no). Where it is not, only chunks that are cut at blocks
// can be equal bit for bit.
bool RowsAreIndependent(kernels::Compute compute) {
  for (const auto& [n, k] :
       {std::pair(1024, 192), std::pair(192, 512), std::pair(768, 192), std::pair(192, 384)}) {
    std::vector<float> weight(n * k), x(64 * k), whole(64 * n);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(std::sin(0.37 * i));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::cos(0.73 * i));
    const auto packed = kernels::PackedWeight::Create(weight.data(), n, k, compute);
    packed->Run(x.data(), 64, nullptr, whole.data());
    for (int m : {1, 2, 3, 5, 8, 20, 36, 40, 128}) {
      std::vector<float> rows(m * k), y(m * n);
      for (int i = 0; i < m * k; ++i) rows[i] = x[i % x.size()];
      packed->Run(rows.data(), m, nullptr, y.data());
      if (!std::equal(y.begin(), y.begin() + std::min(m, 64) * n, whole.begin())) return false;
    }
  }
  return true;
}

struct Agreement {
  float worst = 0;  // logit difference
  int positions = 0, agreeing = 0, clear_disagreeing = 0;
};

// For prompts of several lengths, decode of some tokens after a prefill against prefills of the
// longer prompts. An argmax is clear when it leads by more than `clear`.
Agreement DecodeAgainstPrefill(Transformer* model, int steps, float clear) {
  const bool coded = IsCoded(*model);
  const bool rows_are_independent = RowsAreIndependent(kernels::Compute::kFp32);
  Agreement result;
  for (int length : {1, 63, 64, 65, 319, 320, 321, 383, 384, 385}) {
    const std::vector<int32_t> tokens =
        RandomTokens(length + steps, model->config().vocab_size, length);
    TestPool pool(model->config().kv_shape(), 16, 16);
    SequenceKv kv = pool.Sequence(length + steps, coded);
    SequenceKv whole = pool.Sequence(length + steps, coded);
    PrefillInChunks(model, {tokens.begin(), tokens.begin() + length}, 256, &kv);
    for (int position = length; position < length + steps; ++position) {
      std::vector<float> logits;
      const absl::Status status = model->DecodeStep({{tokens[position], position, &kv}}, &logits);
      EXPECT_TRUE(status.ok()) << status;
      const auto expected =
          PrefillInChunks(model, {tokens.begin(), tokens.begin() + position + 1}, 4096, &whole);
      result.worst = std::max(result.worst, MaxDifference(logits, expected.logits));
      const bool agrees = ArgMax(logits) == ArgMax(expected.logits);
      ++result.positions;
      result.agreeing += agrees;
      result.clear_disagreeing += !agrees && Lead(expected.logits) > clear;
    }
    const int comparable = rows_are_independent ? length : length / kBlockTokens * kBlockTokens;
    if (comparable > 0) {
      EXPECT_TRUE(StoredBytes(kv, comparable, coded) == StoredBytes(whole, comparable, coded))
          << length;
    }
  }
  std::printf("worst difference %.2g, %d of %d argmaxes agree\n", result.worst, result.agreeing,
              result.positions);
  return result;
}

class DecodeTest : public testing::TestWithParam<Setup> {};

// Attention in float64: with bf16 blocks everywhere nothing differs at all; pages are read with all
// their bits by decode and rounded to bf16 by prefill.
TEST_P(DecodeTest, EqualsPrefillOfTheLongerPromptInTheReference) {
  const auto model = Load(GetParam(), kernels::Compute::kFp32, 1, kernels::Backend::kRef);
  const bool rounds = IsCoded(*model) || !RowsAreIndependent(kernels::Compute::kFp32);
  const float bound = rounds ? 0.06f : 1e-5f;
  const Agreement a = DecodeAgainstPrefill(model.get(), 1, bound);
  EXPECT_LT(a.worst, bound);
  EXPECT_EQ(a.clear_disagreeing, 0);
}

// Fast prefill attention rounds q and the probabilities to bf16, decode attention does not.
TEST_P(DecodeTest, EqualsPrefillOfTheLongerPrompt) {
  const auto model = Load(GetParam(), kernels::Compute::kFp32);
  const Agreement a = DecodeAgainstPrefill(model.get(), 3, 0.2f);
  EXPECT_LT(a.worst, 0.2f);
  EXPECT_EQ(a.clear_disagreeing, 0);
}

INSTANTIATE_TEST_SUITE_P(Setups, DecodeTest, testing::ValuesIn(kSetups),
                         [](const auto& i) { return i.param.name; });

class InvarianceTest : public testing::TestWithParam<Setup> {};

// What a worker does between chunks: the bf16 copies behind the window of the next token go.
void ReleaseBehindWindow(int position, SequenceKv* kv) {
  for (int b = kSinkBlocks; b < FirstWindowBlock(position); ++b) kv->ReleaseBlock(b);
}

// The KV of a prompt, prefilled in chunks of `size`, and the logits behind it.
struct Prefilled {
  std::string bytes;
  std::vector<float> logits;
};
Prefilled PrefillAsAWorker(Transformer* model, const std::vector<int32_t>& tokens, int size) {
  const bool coded = IsCoded(*model);
  const int n = static_cast<int>(tokens.size());
  TestPool pool(model->config().kv_shape(), 32, 32);
  SequenceKv kv = pool.Sequence(n, coded);
  Prefilled result;
  for (int at = 0; at < n; at += size) {
    const int end = std::min(n, at + size);
    result.logits =
        PrefillInChunks(model, {tokens.begin(), tokens.begin() + end}, size, &kv, at).logits;
    if (coded) ReleaseBehindWindow(end, &kv);
  }
  result.bytes = StoredBytes(kv, n, coded);
  return result;
}

// K, V and pages are the same bits whatever the chunk size. Where the products allow it this holds
// for chunks cut within blocks and for any number of threads as well. (Logits are those of the last
// tile, which attention computes in another shape when a chunk begins within it.)
TEST_P(InvarianceTest, ChunkSizeAndThreads) {
  for (const auto compute : {kernels::Compute::kFp32, kernels::Compute::kBf16}) {
    const auto model = Load(GetParam(), compute);
    const std::vector<int32_t> tokens = RandomTokens(1300, model->config().vocab_size, 7);
    const Prefilled whole = PrefillAsAWorker(model.get(), tokens, 1300);
    ASSERT_FALSE(whole.bytes.empty());
    for (int size : {64, 256, 960}) {
      const Prefilled chunked = PrefillAsAWorker(model.get(), tokens, size);
      EXPECT_TRUE(chunked.bytes == whole.bytes) << "chunks of " << size;
      EXPECT_EQ(chunked.logits, whole.logits) << "chunks of " << size;
    }
    if (!RowsAreIndependent(compute)) continue;
    for (int size : {1000, 100}) {
      EXPECT_TRUE(PrefillAsAWorker(model.get(), tokens, size).bytes == whole.bytes)
          << "chunks of " << size;
    }
    const auto threaded = Load(GetParam(), compute, 3);
    EXPECT_TRUE(PrefillAsAWorker(threaded.get(), tokens, 256).bytes == whole.bytes) << "3 threads";
  }
}

// A sequence's logits do not depend on who else is in the batch, up to rounding where the products
// do not allow more.
TEST_P(InvarianceTest, Batch) {
  for (const auto compute : {kernels::Compute::kFp32, kernels::Compute::kBf16}) {
    const auto model = Load(GetParam(), compute);
    const bool exact = RowsAreIndependent(compute);
    const int vocab = model->config().vocab_size;
    TestPool pool(model->config().kv_shape(), 32, 64);
    std::vector<SequenceKv> alone, together;
    std::vector<int> lengths = {1, 70, 511, 400, 127};
    for (size_t i = 0; i < lengths.size(); ++i) {
      for (auto* set : {&alone, &together}) {
        set->push_back(pool.Sequence(lengths[i] + 1, IsCoded(*model)));
        PrefillInChunks(model.get(), RandomTokens(lengths[i], vocab, i), 256, &set->back());
      }
    }
    std::vector<DecodeInput> batch;
    for (size_t i = 0; i < lengths.size(); ++i)
      batch.push_back({static_cast<int32_t>(i), lengths[i], &together[i]});
    std::vector<float> joint;
    ASSERT_TRUE(model->DecodeStep(batch, &joint).ok());
    for (size_t i = 0; i < lengths.size(); ++i) {
      std::vector<float> own;
      ASSERT_TRUE(model->DecodeStep({{static_cast<int32_t>(i), lengths[i], &alone[i]}}, &own).ok());
      const absl::Span<const float> row = absl::MakeConstSpan(joint).subspan(i * vocab, vocab);
      EXPECT_LE(MaxDifference(own, row), exact ? 0.0f : 0.05f) << i;
      if (!exact) continue;
      EXPECT_TRUE(StoredBytes(alone[i], lengths[i] + 1, IsCoded(*model)) ==
                  StoredBytes(together[i], lengths[i] + 1, IsCoded(*model)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Setups, InvarianceTest, testing::ValuesIn(kSetups),
                         [](const auto& i) { return i.param.name; });

}  // namespace
}  // namespace oscarkv
