#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Of `n` draws at successive positions, how often each token came.
std::vector<int> Draw(const std::vector<float>& logits, const SamplingParams& params, int n,
                      const std::vector<int32_t>& history = {}) {
  std::vector<int> counts(logits.size());
  for (int position = 0; position < n; ++position) {
    const SampledToken t = Sample(logits, params, history, position);
    EXPECT_GE(t.token, 0);
    if (t.token >= 0) ++counts[t.token];
  }
  return counts;
}

// Within five standard deviations of a binomial.
void ExpectShare(int count, int n, double p) {
  EXPECT_NEAR(count, n * p, 5 * std::sqrt(n * p * (1 - p)) + 1e-9);
}

TEST(SampleTest, GreedyTakesTheBestAndTheSmallerIdOfEquals) {
  EXPECT_EQ(Sample({1, 3, 2}, {}, {}, 0).token, 1);
  EXPECT_EQ(Sample({1, 3, 3, 3}, {}, {}, 5).token, 1);
  EXPECT_EQ(Sample({-5}, {}, {}, 0).token, 0);
}

TEST(SampleTest, BadLogitsAreNeverChosen) {
  EXPECT_EQ(Sample({kNan, -3, -kInf}, {}, {}, 0).token, 1);
  EXPECT_EQ(Sample({kNan, kNan}, {}, {}, 0).token, -1);
  EXPECT_EQ(Sample({-kInf, -kInf}, {}, {}, 0).token, -1);
  EXPECT_EQ(Sample({}, {}, {}, 0).token, -1);
  const SamplingParams warm{.temperature = 1, .seed = 1};
  EXPECT_EQ(Draw({kNan, 0, -kInf, 0}, warm, 200)[0], 0);
  EXPECT_EQ(Sample({0, kInf, 0}, warm, {}, 0).token, 1);
}

TEST(SampleTest, TemperatureGivesTheDistribution) {
  const std::vector<float> logits = {0, 1, 2, -1};
  constexpr int kDraws = 20000;
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    double sum = 0;
    for (float l : logits) sum += std::exp(l / temperature);
    const std::vector<int> counts = Draw(logits, {.temperature = temperature, .seed = 11}, kDraws);
    for (size_t i = 0; i < logits.size(); ++i)
      ExpectShare(counts[i], kDraws, std::exp(logits[i] / temperature) / sum);
  }
}

TEST(SampleTest, TinyTemperatureIsGreedy) {
  const SamplingParams params{.temperature = 1e-30f, .seed = 3};
  for (int position = 0; position < 50; ++position)
    EXPECT_EQ(Sample({1, 1.5f, -2}, params, {}, position).token, 1);
}

// Fixed values: the random numbers are part of the contract between workers.
TEST(SampleTest, PureFunctionOfSeedAndPosition) {
  const std::vector<float> logits(1000, 0.0f);
  const SamplingParams a{.temperature = 1, .seed = 1}, b{.temperature = 1, .seed = 2};
  std::vector<int32_t> first, second;
  for (int position = 0; position < 6; ++position) {
    first.push_back(Sample(logits, a, {}, position).token);
    second.push_back(Sample(logits, b, {}, position).token);
    EXPECT_EQ(Sample(logits, a, {}, position).token, first.back());
  }
  EXPECT_THAT(first, ::testing::ElementsAre(368, 943, 45, 777, 219, 774));
  EXPECT_THAT(second, ::testing::ElementsAre(392, 84, 842, 557, 952, 816));
}

TEST(SampleTest, TopK) {
  const std::vector<float> logits = {0, 1, 2, 1, 0.5f};  // of the two equal ones, 1 ranks before 3
  const std::vector<int> counts = Draw(logits, {.temperature = 1, .top_k = 2, .seed = 5}, 5000);
  EXPECT_EQ(counts[0] + counts[3] + counts[4], 0);
  ExpectShare(counts[2], 5000, 1 / (1 + std::exp(-1.0)));
}

TEST(SampleTest, TopP) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f),
                                     std::log(0.3f)};
  const auto kept = [&](float top_p) {
    const std::vector<int> counts =
        Draw(logits, {.temperature = 1, .top_p = top_p, .seed = 5}, 3000);
    return 4 - std::count(counts.begin(), counts.end(), 0);
  };
  EXPECT_EQ(kept(0.3f), 1);   // at least one
  EXPECT_EQ(kept(0.51f), 2);  // the one that crosses the bound stays
  EXPECT_EQ(kept(0.79f), 2);
  EXPECT_EQ(kept(0.81f), 3);
  EXPECT_EQ(kept(0.96f), 4);
  EXPECT_EQ(kept(1.0f), 4);
}

TEST(SampleTest, TopPOverManyTokens) {
  // 1,000 equal tokens: half of them stay, those with the smaller ids.
  const std::vector<float> logits(1000, 1.0f);
  const std::vector<int> counts = Draw(logits, {.temperature = 1, .top_p = 0.5f, .seed = 5}, 2000);
  EXPECT_EQ(std::accumulate(counts.begin() + 501, counts.end(), 0), 0);
  EXPECT_GT(std::accumulate(counts.begin() + 450, counts.begin() + 500, 0), 0);
}

TEST(SampleTest, MinP) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.26f), std::log(0.24f)};
  const std::vector<int> counts = Draw(logits, {.temperature = 1, .min_p = 0.5f, .seed = 5}, 5000);
  EXPECT_EQ(counts[2], 0);
  ExpectShare(counts[0], 5000, 0.5 / 0.76);
}

TEST(SampleTest, TopPAppliesAfterTopK) {
  // top-k leaves 0.5 and 0.3: of their sum the first alone has 0.625.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  EXPECT_EQ(Draw(logits, {.temperature = 1, .top_k = 2, .top_p = 0.6f, .seed = 5}, 1000)[0], 1000);
  EXPECT_LT(Draw(logits, {.temperature = 1, .top_k = 2, .top_p = 0.65f, .seed = 5}, 1000)[0], 1000);
}

TEST(SampleTest, RepetitionPenaltyHitsSeenTokensOnce) {
  const SamplingParams params{.repetition_penalty = 2};
  EXPECT_EQ(Sample({4, 3, 0}, params, {0}, 1).token, 1);           // 4 / 2 < 3
  EXPECT_EQ(Sample({4, 1.5f, 0}, params, {0, 0, 0}, 3).token, 0);  // once, not thrice
  EXPECT_EQ(Sample({-1, -1.5f}, params, {0}, 1).token, 1);         // negative logits are multiplied
  EXPECT_EQ(Sample({4, 3}, params, {-1, 2, 99}, 3).token,
            0);  // ids outside the vocabulary do nothing
}

TEST(SampleTest, LogprobsComeFromTheUnmodifiedDistribution) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.7f), std::log(0.1f)};
  const SamplingParams params{
      .temperature = 1.7f, .top_k = 1, .repetition_penalty = 50, .seed = 1, .logprobs = 2};
  const SampledToken t = Sample(logits, params, {1}, 1);
  EXPECT_EQ(t.token, 0);
  EXPECT_NEAR(t.logprob, std::log(0.2), 1e-6);
  ASSERT_EQ(t.top.size(), 2);
  EXPECT_EQ(t.top[0].token, 1);
  EXPECT_NEAR(t.top[0].logprob, std::log(0.7), 1e-6);
  EXPECT_EQ(t.top[1].token, 0);
  EXPECT_TRUE(Sample(logits, {}, {}, 0).top.empty());
  EXPECT_EQ(Sample(logits, {.logprobs = 20}, {}, 0).top.size(), 3);
}

TEST(SampleTest, HugeLogitsDoNotOverflow) {
  const SampledToken t =
      Sample({3e38f, -3e38f, 2.9e38f}, {.temperature = 0.1f, .seed = 1, .logprobs = 3}, {}, 0);
  EXPECT_EQ(t.token, 0);
  EXPECT_FLOAT_EQ(t.logprob, 0);
}

TEST(ValidateSamplingTest, NamesFieldValueAndRange) {
  EXPECT_TRUE(ValidateSampling({}).ok());
  EXPECT_TRUE(ValidateSampling(
                  {.temperature = 1, .top_k = 5, .top_p = 0.01f, .min_p = 0.9f, .logprobs = 20})
                  .ok());
  struct {
    SamplingParams params;
    const char* field;
  } const cases[] = {
      {{.temperature = -0.1f}, "temperature is -0.1"},
      {{.temperature = kNan}, "temperature is nan"},
      {{.temperature = kInf}, "temperature is inf"},
      {{.top_k = -1}, "top_k is -1"},
      {{.top_p = 0}, "top_p is 0"},
      {{.top_p = 1.5f}, "top_p is 1.5"},
      {{.top_p = kNan}, "top_p is nan"},
      {{.min_p = 1}, "min_p is 1"},
      {{.min_p = -1}, "min_p is -1"},
      {{.repetition_penalty = 0}, "repetition_penalty is 0"},
      {{.repetition_penalty = kNan}, "repetition_penalty is nan"},
      {{.logprobs = 21}, "logprobs is 21"},
      {{.logprobs = -1}, "logprobs is -1"},
  };
  for (const auto& c : cases) {
    const absl::Status status = ValidateSampling(c.params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
    EXPECT_THAT(std::string(status.message()), HasSubstr("allowed"));
  }
}

}  // namespace
}  // namespace oscarkv
