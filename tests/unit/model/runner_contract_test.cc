// What callers of the runner rely on beside the numbers: when on_layer comes, what is refused, who
// suffers from a bad sequence.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/transformer.h"
#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

class RunnerTest : public testing::Test {
 protected:
  void SetUp() override {
    Load(MakeTinyModel("qwen3", 3), Profile::kOscar, PrefillHistory::kCanonical);
  }

  void Load(const TinyModel& tiny, Profile profile, PrefillHistory history, bool fp32_kv = false) {
    TempFolder dir;
    tiny.Write(dir.path());
    CodecOptions codec;
    codec.profile = profile;
    codec.data_free = true;
    TransformerOptions options;
    options.compute = kernels::Compute::kFp32;
    options.history = history;
    options.fp32_kv = fp32_kv;
    auto model = LoadTransformer(dir.path(), *CreateCodec(codec, tiny.config.kv_shape()), options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    pool_ = std::make_unique<TestPool>(tiny.config.kv_shape(), 16, 16);
  }

  absl::Status Prefill(const std::vector<int32_t>& tokens, int start, SequenceKv* kv) {
    PrefillChunk chunk;
    chunk.tokens = tokens;
    chunk.start = start;
    chunk.kv = kv;
    return model_->Prefill(chunk).status();
  }
  absl::Status Decode(int32_t token, int position, SequenceKv* kv) {
    std::vector<float> logits;
    return model_->DecodeStep({{token, position, kv}}, &logits);
  }
  void ExpectError(const absl::Status& status, absl::StatusCode code, const char* text) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  static constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  static constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
  std::unique_ptr<TestPool> pool_;
  std::unique_ptr<ModelRunner> model_;
};

// At on_layer(l) the layer's rows and pages are what they are at the end, and the next layer's are
// untouched.
TEST_F(RunnerTest, OnLayerComesWhenTheLayerIsFinal) {
  const std::vector<int32_t> tokens = RandomTokens(200, 97, 1);
  SequenceKv kv = pool_->Sequence(200, true);
  const kernels::KvShape& shape = pool_->pool().shape();
  for (int b = 0; b < 4; ++b) {
    std::memset(pool_->pool().block(kv.at(b).block), 0xff, shape.Bf16BlockBytes());
    if (b > 0) std::memset(pool_->pool().page(kv.at(b).page), 0xff, shape.PageBytes());
  }
  const auto layer_bytes = [&](int layer) {
    std::string bytes;
    for (int b = 0; b < 4; ++b) {
      bytes.append(reinterpret_cast<const char*>(pool_->pool().block_layer(kv.at(b).block, layer)),
                   shape.Bf16LayerBytes());
      if (b > 0)
        bytes.append(reinterpret_cast<const char*>(pool_->pool().page_layer(kv.at(b).page, layer)),
                     shape.PageLayerBytes());
    }
    return bytes;
  };
  const std::string untouched(layer_bytes(0).size(), '\xff');
  std::vector<std::string> at_call;
  PrefillChunk chunk;
  chunk.tokens = tokens;
  chunk.kv = &kv;
  chunk.on_layer = [&](int layer) {
    EXPECT_EQ(layer, static_cast<int>(at_call.size()));
    at_call.push_back(layer_bytes(layer));
    EXPECT_NE(at_call.back(), untouched);
    if (layer == 0) {
      EXPECT_EQ(layer_bytes(1), untouched);
    }
  };
  ASSERT_TRUE(model_->Prefill(chunk).ok());
  ASSERT_EQ(at_call.size(), 2);
  for (int layer = 0; layer < 2; ++layer)
    EXPECT_TRUE(at_call[layer] == layer_bytes(layer)) << layer;
}

TEST_F(RunnerTest, OutputsAreThoseAskedFor) {
  const std::vector<int32_t> tokens = RandomTokens(130, 97, 1);
  SequenceKv kv = pool_->Sequence(130, true);
  PrefillChunk chunk;
  chunk.tokens = tokens;
  chunk.kv = &kv;
  const auto none = model_->Prefill(chunk);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->logits.empty() && none->all_argmax.empty() && none->all_top_gap.empty());
  chunk.want_logits = true;
  const auto last = model_->Prefill(chunk);
  chunk.want_all_argmax = true;
  const auto all = model_->Prefill(chunk);
  ASSERT_TRUE(last.ok() && all.ok());
  EXPECT_EQ(last->logits,
            all->logits);  // though the last layer was computed for the last tile only
  ASSERT_EQ(all->all_argmax.size(), 130);
  EXPECT_EQ(all->all_argmax.back(),
            std::max_element(last->logits.begin(), last->logits.end()) - last->logits.begin());
  std::vector<float> sorted = last->logits;
  std::sort(sorted.rbegin(), sorted.rend());
  EXPECT_FLOAT_EQ(all->all_top_gap.back(), sorted[0] - sorted[1]);
}

TEST_F(RunnerTest, PrefillRefusesBadInput) {
  SequenceKv kv = pool_->Sequence(64, true);
  ExpectError(Prefill({}, 0, &kv), kInvalid, "no tokens");
  ExpectError(Prefill({1, 97}, 0, &kv), kInvalid, "token 97 at position 1");
  ExpectError(Prefill({-1}, 5, &kv), kInvalid, "token -1 at position 5");
  ExpectError(Prefill({1}, -1, &kv), kInvalid, "position -1");
  ExpectError(Prefill({1, 2}, 1023, &kv), kInvalid, "context of 1024");
  ExpectError(Prefill({1}, 2147483647, &kv), kInvalid, "context of 1024");
  ExpectError(Prefill({1}, 0, nullptr), kInvalid, "no SequenceKv");
  TestPool other({3, 2, 64}, 1, 1);
  SequenceKv foreign = other.Sequence(1, true);
  ExpectError(Prefill({1}, 0, &foreign), kPrecondition, "shape");
}

TEST_F(RunnerTest, PrefillNamesTheMissingSlot) {
  const std::vector<int32_t> tokens = RandomTokens(64, 97, 1);
  SequenceKv kv = pool_->Sequence(7 * 64, true);
  for (int b = 0; b < 6; ++b) ASSERT_TRUE(Prefill(tokens, b * 64, &kv).ok());
  kv.ReleaseBlock(6);
  ExpectError(Prefill(tokens, 6 * 64, &kv), kPrecondition, "block 6 has no bf16 slot");
  kv.EnsureBlock(6);
  kv.ReleasePage(6);
  ExpectError(Prefill(tokens, 6 * 64, &kv), kPrecondition, "block 6 has no page slot");
  EXPECT_TRUE(
      Prefill({1}, 6 * 64, &kv).ok());  // a chunk that does not fill the block needs no page
  kv.EnsurePage(6);
  kv.ReleaseBlock(1);  // behind the window: its page serves
  EXPECT_TRUE(Prefill(tokens, 6 * 64, &kv).ok());
  kv.ReleaseBlock(4);  // in the window: the page must do
  EXPECT_TRUE(Prefill(tokens, 6 * 64, &kv).ok());
  kv.ReleasePage(4);
  ExpectError(Prefill(tokens, 6 * 64, &kv), kPrecondition, "block 4 has no bf16 or page slot");
  kv.EnsurePage(4);
  kv.ReleasePage(1);
  kv.EnsureBlock(1);
  ExpectError(Prefill(tokens, 6 * 64, &kv), kPrecondition, "block 1 has no page slot");
  kv.EnsurePage(1);
  kv.ReleaseBlock(0);
  ExpectError(Prefill(tokens, 6 * 64, &kv), kPrecondition, "block 0 has no bf16 slot");
}

TEST_F(RunnerTest, DecodeRefusesBadInput) {
  SequenceKv kv = pool_->Sequence(7 * 64, true);
  ExpectError(Decode(97, 0, &kv), kInvalid, "token 97");
  ExpectError(Decode(1, 1024, &kv), kInvalid, "position 1024");
  ExpectError(Decode(1, -1, &kv), kInvalid, "position -1");
  ExpectError(Decode(1, 0, nullptr), kInvalid, "no SequenceKv");
  ExpectError(Decode(1, 7 * 64, &kv), kPrecondition, "block 7 has no slot");
  ASSERT_TRUE(Prefill(RandomTokens(7 * 64 - 1, 97, 2), 0, &kv).ok());
  kv.ReleasePage(6);
  ExpectError(Decode(1, 7 * 64 - 1, &kv), kPrecondition, "block 6 gets full and has no page");
  kv.EnsurePage(6);
  kv.ReleaseBlock(2);  // in the window: its page must not be attended in its place
  ExpectError(Decode(1, 7 * 64 - 1, &kv), kPrecondition, "block 2 has no slot");
  kv.EnsureBlock(2);
  kv.ReleaseBlock(1);
  EXPECT_TRUE(Decode(1, 7 * 64 - 1, &kv).ok());
  TestPool other(pool_->pool().shape(), 1, 1);
  SequenceKv foreign = other.Sequence(1, true);
  std::vector<float> logits;
  ExpectError(model_->DecodeStep({{1, 0, &kv}, {1, 0, &foreign}}, &logits), kPrecondition,
              "another KV pool");
  EXPECT_TRUE(model_->DecodeStep({}, &logits).ok());
  EXPECT_TRUE(logits.empty());
}

TEST_F(RunnerTest, Fp32KvTakesOneChunkAndDoesNotDecode) {
  Load(MakeTinyModel("qwen3", 3), Profile::kBf16, PrefillHistory::kExact, true);
  EXPECT_TRUE(Prefill({1, 2, 3}, 0, nullptr).ok());
  EXPECT_EQ(Prefill({1, 2, 3}, 64, nullptr).code(), absl::StatusCode::kUnimplemented);
  SequenceKv kv = pool_->Sequence(1, false);
  ExpectError(Decode(1, 0, &kv), kPrecondition, "fp32");
}

// Token 5 has an embedding of Inf: its K is NaN. The sequence that decodes it gets no choosable
// logits; the other goes on.
TEST_F(RunnerTest, OneBrokenSequenceDoesNotEndTheBatch) {
  TinyModel tiny = MakeTinyModel("qwen3", 3);
  TinyTensor& embedding = tiny.tensors["model.embed_tokens.weight"];
  for (int i = 0; i < 48; ++i) embedding.values[5 * 48 + i] = INFINITY;
  Load(tiny, Profile::kOscar, PrefillHistory::kCanonical);
  SequenceKv good = pool_->Sequence(128, true), bad = pool_->Sequence(128, true),
             alone = pool_->Sequence(128, true);
  const std::vector<int32_t> tokens(127, 1);
  for (SequenceKv* kv : {&good, &bad, &alone}) ASSERT_TRUE(Prefill(tokens, 0, kv).ok());
  std::vector<float> logits, expected;
  ASSERT_TRUE(model_->DecodeStep({{5, 127, &bad}, {7, 127, &good}}, &logits).ok());
  ASSERT_TRUE(model_->DecodeStep({{7, 127, &alone}}, &expected).ok());
  for (int v = 0; v < 97; ++v) {
    EXPECT_TRUE(std::isnan(logits[v]));
    EXPECT_EQ(logits[97 + v], expected[v]);
  }
  // In prefill the sequence is alone: an error.
  std::vector<int32_t> poisoned(128, 1);
  poisoned[100] = 5;
  SequenceKv fresh = pool_->Sequence(128, true);
  EXPECT_EQ(Prefill(poisoned, 0, &fresh).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace oscarkv
