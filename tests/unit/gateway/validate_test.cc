#include "gateway/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace oscarkv::gateway {
namespace {

using ::testing::HasSubstr;

constexpr ModelLimits kModel = {1000, 500};

GenerateInput Valid() {
  GenerateInput input;
  input.prompt = "Hello";
  input.max_tokens = 10;
  return input;
}

struct Case {
  const char* name;
  std::function<void(GenerateInput*)> change;
  std::vector<const char*> says;  // empty: allowed
};

const Case kCases[] = {
    {"Plain", [](GenerateInput* i) {}, {}},
    {"DefaultMaxTokens", [](GenerateInput* i) { i->max_tokens = 0; }, {}},
    {"EmptyPrompt", [](GenerateInput* i) { i->prompt.clear(); }, {"prompt is empty"}},
    {"BothPrompts",
     [](GenerateInput* i) {
       i->prompt_tokens = {1, 2};
     },
     {"prompt (5 bytes)", "prompt_tokens (2 ids)", "exactly one"}},
    {"TokensOnly",
     [](GenerateInput* i) {
       i->prompt.clear();
       i->prompt_tokens = {0, 499};
     },
     {}},
    {"TokenTooLarge",
     [](GenerateInput* i) {
       i->prompt.clear();
       i->prompt_tokens = {0, 500};
     },
     {"prompt_tokens[1] is 500", "0..499"}},
    {"TokenNegative",
     [](GenerateInput* i) {
       i->prompt.clear();
       i->prompt_tokens = {-1};
     },
     {"prompt_tokens[0] is -1", "0..499"}},
    {"TokensBeyondContext",
     [](GenerateInput* i) {
       i->prompt.clear();
       i->prompt_tokens.assign(1000, 1);
     },
     {"prompt_tokens 1000", "context of 1000"}},
    {"MaxTokensBeyondContext",
     [](GenerateInput* i) { i->max_tokens = 1000; },
     {"max_tokens 1000", "context of 1000"}},
    {"NegativeTemperature",
     [](GenerateInput* i) { i->sampling.temperature = -1; },
     {"temperature", "-1"}},
    {"NanTemperature",
     [](GenerateInput* i) { i->sampling.temperature = std::nanf(""); },
     {"temperature", "nan"}},
    {"TopPTooLarge", [](GenerateInput* i) { i->sampling.top_p = 1.5; }, {"top_p", "1.5"}},
    {"TopPZero", [](GenerateInput* i) { i->sampling.top_p = 0; }, {"top_p", "0"}},
    {"MinPOne", [](GenerateInput* i) { i->sampling.min_p = 1; }, {"min_p", "1"}},
    {"TopKNegative", [](GenerateInput* i) { i->sampling.top_k = -3; }, {"top_k", "-3"}},
    {"PenaltyZero",
     [](GenerateInput* i) { i->sampling.repetition_penalty = 0; },
     {"repetition_penalty", "0"}},
    {"TooManyLogprobs", [](GenerateInput* i) { i->sampling.logprobs = 21; }, {"logprobs", "21"}},
    {"SixteenStops", [](GenerateInput* i) { i->stop.assign(16, "x"); }, {}},
    {"TooManyStops",
     [](GenerateInput* i) { i->stop.assign(17, "x"); },
     {"stop has 17", "up to 16"}},
    {"EmptyStop",
     [](GenerateInput* i) {
       i->stop = {"x", ""};
     },
     {"stop[1]", "0 bytes", "1..256"}},
    {"LongStop",
     [](GenerateInput* i) { i->stop = {std::string(257, 'x')}; },
     {"stop[0]", "257 bytes", "1..256"}},
    {"StopNotUtf8", [](GenerateInput* i) { i->stop = {"ab\xff"}; }, {"stop[0]", "byte 2", "0xff"}},
    {"TooManyStopTokens",
     [](GenerateInput* i) { i->stop_tokens.assign(65, 1); },
     {"stop_tokens has 65", "up to 64"}},
    {"StopTokenTooLarge",
     [](GenerateInput* i) { i->stop_tokens = {500}; },
     {"stop_tokens[0] is 500", "0..499"}},
    {"LongRequestId",
     [](GenerateInput* i) { i->request_id = std::string(129, 'r'); },
     {"request_id", "129 bytes", "up to 128"}},
    {"RequestIdWithNewline",
     [](GenerateInput* i) { i->request_id = "a\nb"; },
     {"request_id", "\\n", "printable"}},
    {"LongTenant",
     [](GenerateInput* i) { i->tenant = std::string(65, 't'); },
     {"tenant", "65 bytes", "up to 64"}},
    {"TenantWithSpace", [](GenerateInput* i) { i->tenant = "a b"; }, {"tenant", "a b"}},
};

TEST(ValidateRequest, Cases) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    GenerateInput input = Valid();
    c.change(&input);
    const absl::Status status = ValidateRequest(input, RequestLimits(), kModel);
    EXPECT_EQ(status.code(),
              c.says.empty() ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument)
        << status;
    for (const char* text : c.says) EXPECT_THAT(status.message(), HasSubstr(text));
  }
}

struct LengthCase {
  const char* name;
  uint32_t asked;
  size_t prompt;
  uint32_t expected;  // 0: refused
  const char* says;
};

const LengthCase kLengths[] = {
    {"Fits", 10, 100, 10, ""},
    {"JustFits", 900, 100, 900, ""},
    {"OneTooMany", 901, 100, 0, "allowed are 1..900"},
    {"Default", 0, 100, 256, ""},
    {"DefaultGivesWay", 0, 900, 100, ""},
    {"LastToken", 0, 999, 1, ""},
    {"PromptFillsContext", 0, 1000, 0, "1000: allowed is less than the model's context of 1000"},
    {"PromptBeyondContext", 1, 2000, 0, "2000"},
    {"NoTokens", 1, 0, 0, "no tokens"},
};

TEST(MaxAnswerTokens, Cases) {
  for (const LengthCase& c : kLengths) {
    SCOPED_TRACE(c.name);
    const auto result = MaxAnswerTokens(c.asked, c.prompt, RequestLimits(), kModel);
    if (c.expected > 0) {
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(*result, c.expected);
    } else {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(result.status().message(), HasSubstr(c.says));
    }
  }
}

TEST(SetTenant, IsTheCallers) {
  const auth::Identity caller{"ci", "acme", auth::kClient, false};
  GenerateInput input;
  EXPECT_TRUE(SetTenant(caller, &input).ok());
  EXPECT_EQ(input.tenant, "acme");
  EXPECT_TRUE(SetTenant(caller, &input).ok());
  input.tenant = "other";
  const absl::Status refused = SetTenant(caller, &input);
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("may not act for tenant"));
  auth::Identity everyone = caller;
  everyone.everyone = true;
  EXPECT_TRUE(SetTenant(everyone, &input).ok());
  EXPECT_EQ(input.tenant, "other");
}

}  // namespace
}  // namespace oscarkv::gateway
