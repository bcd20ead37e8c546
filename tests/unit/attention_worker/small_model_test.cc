// The disaggregated path with a real (small) transformer: the tokens are those of one runner that
// keeps everything to itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "codec/shaped_codec.h"
#include "tests/unit/worker/fake_runtime.h"
#include "tests/unit/worker/harness.h"

namespace oscarkv {
namespace {

constexpr char kModel[] = "tests/golden/families/qwen3";
constexpr int kChunk = 128;
constexpr int kAnswer = 70;  // crosses at least one block boundary

// Rows as they are, coded in a plain metric: what the path does is not a question of the fit.
std::shared_ptr<const KvCodec> ShapedOf(const kernels::KvShape& shape) {
  ShapedParameters p;
  p.shape = shape;
  const int d = shape.head_dim;
  ShapedSide side;
  for (int i = 0; i < shape.num_kv_heads * d * d; ++i)
    side.transform.push_back(i % (d * d) % (d + 1) == 0 ? 1.0f : 0.0f);
  side.metric = side.transform;
  side.mean.assign(shape.num_kv_heads * d, 0.0f);
  p.sides.assign(2 * shape.num_layers, side);
  auto codec = ShapedCodec::Create(p, {.symmetric = true}, "test");
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *codec;
}

std::unique_ptr<ModelRunner> LoadRunner(Profile profile, PrefillHistory history) {
  CodecOptions codec;
  codec.profile = profile;
  codec.data_free = true;
  TransformerOptions options;
  options.compute = kernels::Compute::kFp32;
  options.history = history;
  auto config = LoadModelConfig(kModel);
  EXPECT_TRUE(config.ok()) << config.status();
  auto runner =
      LoadTransformer(kModel,
                      profile == Profile::kShapedSym ? ShapedOf(config->kv_shape())
                                                     : *CreateCodec(codec, config->kv_shape()),
                      options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return *std::move(runner);
}

// Greedy tokens of a runner with a pool of its own.
std::vector<int32_t> LocalRun(ModelRunner* runner, std::vector<int32_t> tokens) {
  auto arena = *worker::KvArena::Create(runner->codec().shape(), 16, 16, nullptr);
  const bool coded = runner->codec().profile() != Profile::kBf16;
  const int n = static_cast<int>(tokens.size());
  SequenceKv kv(&arena->pool());
  std::vector<float> logits;
  for (int begin = 0; begin < n; begin += kChunk) {
    PrefillChunk chunk;
    chunk.tokens = absl::MakeConstSpan(tokens).subspan(begin, kChunk);
    chunk.start = begin;
    chunk.kv = &kv;
    chunk.want_logits = begin + kChunk >= n;
    for (int b = BlockOf(begin); b * kBlockTokens < std::min(n, begin + kChunk); ++b) {
      EXPECT_TRUE(kv.EnsureBlock(b) && (!coded || b == 0 || kv.EnsurePage(b)));
    }
    auto output = runner->Prefill(chunk);
    EXPECT_TRUE(output.ok()) << output.status();
    logits = std::move(output->logits);
  }
  std::vector<int32_t> answer;
  while (true) {
    answer.push_back(Sample(logits, {}, tokens, static_cast<int>(tokens.size())).token);
    tokens.push_back(answer.back());
    if (answer.size() == kAnswer) return answer;
    const int position = static_cast<int>(tokens.size()) - 1;
    EXPECT_TRUE(kv.EnsureBlock(BlockOf(position)));
    EXPECT_TRUE(!coded || BlockOf(position) == 0 || kv.EnsurePage(BlockOf(position)));
    const absl::Status status = runner->DecodeStep({{tokens.back(), position, &kv}}, &logits);
    EXPECT_TRUE(status.ok()) << status;
  }
}

struct Mode {
  const char* name;
  Profile profile;
  PrefillHistory history;
};

class SmallModelTest : public testing::TestWithParam<Mode> {};

TEST_P(SmallModelTest, SameTokensAsALocalRun) {
  FakeKvStore store(SteadyClock::Get());
  MetricRegistry registry;
  PrefillMetrics prefill_metrics(&registry);
  AttentionMetrics attention_metrics(&registry);
  auto runtime = [&] {
    return FakeRuntime(LoadRunner(GetParam().profile, GetParam().history), &store, &registry);
  };
  const auto p = runtime(), a = runtime();
  auto local = LoadRunner(GetParam().profile, GetParam().history);
  PrefillEngine prefill({.chunk_tokens = kChunk}, p->runner.get(), p->io.get(), p->fetch_pool.get(),
                        p->putter.get(), &prefill_metrics, p->metrics.get());
  AttentionEngine attention({}, a->runner.get(), a->io.get(), a->fetch_pool.get(), a->putter.get(),
                            &attention_metrics, a->metrics.get());
  const Time deadline = SteadyClock::Get()->Now() + std::chrono::hours(1);
  for (const int n : {1, 63, 64, 65, 319, 320, 321, 383, 384, 385}) {
    SCOPED_TRACE(n);
    std::vector<int32_t> tokens = Prompt(n, p->runner->config().vocab_size, n);
    const std::vector<int32_t> expected = LocalRun(local.get(), tokens);
    std::promise<absl::StatusOr<PrefillResult>> first;
    ASSERT_TRUE(
        prefill
            .Submit({"r", tokens, {}, "", deadline}, [&](auto r) { first.set_value(std::move(r)); })
            .ok());
    const auto result = first.get_future().get();
    ASSERT_TRUE(result.ok()) << result.status();
    tokens.push_back(result->first_token.token);
    DecodeRecorder recorder;
    ASSERT_TRUE(
        attention.Submit({"r", tokens, n, {}, kAnswer, {}, "", deadline}, recorder.Events()).ok());
    const DecodeOutcome outcome = recorder.Await();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    std::vector<int32_t> answer = {result->first_token.token};
    answer.insert(answer.end(), outcome.tokens.begin(), outcome.tokens.end());
    EXPECT_EQ(answer, expected);
    EXPECT_EQ(outcome.result.recomputed_tokens, 0);
  }
  EXPECT_THAT(store.violations(), testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Modes, SmallModelTest,
    testing::Values(Mode{"Bf16", Profile::kBf16, PrefillHistory::kExact},
                    Mode{"ShapedSymExact", Profile::kShapedSym, PrefillHistory::kExact},
                    Mode{"ShapedSymCanonical", Profile::kShapedSym, PrefillHistory::kCanonical},
                    Mode{"OscarExact", Profile::kOscar, PrefillHistory::kExact},
                    Mode{"OscarCanonical", Profile::kOscar, PrefillHistory::kCanonical}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace oscarkv
