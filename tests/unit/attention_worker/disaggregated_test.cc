// Prefill worker -> store -> attention worker against what the tokens alone say, over all the ways
// in which the store can fail.
#include <gtest/gtest.h>

#include "tests/unit/worker/harness.h"

namespace oscarkv {
namespace {

using Op = FakeKvStore::Op;

struct Case {
  Profile profile;
  int prompt;
};
std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return std::string(ProfileName(info.param.profile)) + std::to_string(info.param.prompt);
}

class Disaggregated : public testing::TestWithParam<Case> {
 protected:
  Disaggregated() { options_.profile = GetParam().profile; }

  // Prefill, then decode of `more` tokens; checks every one.
  DecodeOutcome Ask(PrefillWorkerUnderTest* prefill, AttentionWorkerUnderTest* attention,
                    const std::vector<int32_t>& prompt, int more, PrefillResult* first = nullptr) {
    const std::vector<int32_t> expected = ExpectedTokens(options_, prompt, more);
    auto result = prefill->Run(prompt);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {result.status(), {}, {}};
    EXPECT_EQ(result->first_token.token, expected[0]);
    std::vector<int32_t> tokens = prompt;
    tokens.push_back(result->first_token.token);
    if (first != nullptr) *first = *result;
    DecodeOutcome outcome = attention->Run(tokens, more);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.tokens, std::vector<int32_t>(expected.begin() + 1, expected.end()));
    EXPECT_EQ(outcome.result.reason, StopReason::kLength);
    return outcome;
  }

  ChainRunnerOptions options_;
  FakeClock clock_;
  FakeKvStore store_{&clock_};
};

TEST_P(Disaggregated, GivesTheTokensOfALocalRun) {
  {
    PrefillWorkerUnderTest prefill(options_, &store_, {.chunk_tokens = 128}, 128, 128, &clock_);
    AttentionWorkerUnderTest attention(options_, &store_, {}, 128, 128, &clock_);
    PrefillResult first;
    const DecodeOutcome outcome = Ask(&prefill, &attention, Prompt(GetParam().prompt), 150, &first);
    EXPECT_EQ(outcome.result.recomputed_tokens, 0);
    EXPECT_EQ(first.cached_tokens, 0);
    EXPECT_EQ(first.blocks_not_stored, 0);
    EXPECT_EQ(prefill.parts.runner.prefilled_tokens, GetParam().prompt);
    EXPECT_EQ(attention.parts.runner.prefilled_tokens, 0);
    prefill.engine.Shutdown(Duration(0));
    attention.engine.Shutdown(Duration(0));
    EXPECT_TRUE(prefill.parts.AllFree());
    EXPECT_TRUE(attention.parts.AllFree());
  }
  EXPECT_EQ(store_.open_reservations(), 0);
  EXPECT_THAT(store_.violations(), testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Lengths, Disaggregated, testing::ValuesIn([] {
      std::vector<Case> cases;
      for (Profile profile : {Profile::kOscar, Profile::kBf16}) {
        for (int n : {1, 63, 64, 65, 127, 128, 319, 320, 321, 383, 384, 385, 1000})
          cases.push_back({profile, n});
      }
      return cases;
    }()),
    CaseName);

}  // namespace
}  // namespace oscarkv
