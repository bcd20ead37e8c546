#include "model/golden_check.h"

#include <cstdio>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

struct Case {
  const char* name;
  const char* model_dir;
  const char* golden;
  int prompts;
  int kv_tensors;  // in all prompts
  bool bf16_rope;  // its goldens were made with rotary frequencies rounded to bf16
};

const Case kCases[] = {
    {"reference", "models/reference", "tests/golden/golden.safetensors", 3, 4, false},
    {"qwen3", "tests/golden/families/qwen3", "tests/golden/families/qwen3/golden.safetensors", 3, 0,
     true},
    {"llama", "tests/golden/families/llama", "tests/golden/families/llama/golden.safetensors", 3, 0,
     true},
};

class GoldenCheckTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenCheckTest, Fp32IsCloseEverywhere) {
  const Case& c = GetParam();
  const auto report = RunGoldenCheck(
      {.model_dir = c.model_dir, .golden_file = c.golden, .compute = kernels::Compute::kFp32});
  ASSERT_TRUE(report.ok()) << report.status();
  std::printf("%s", report->ToString().c_str());
  EXPECT_TRUE(report->passed) << report->ToString();
  EXPECT_EQ(report->prompts.size(), c.prompts);
  int kv = 0;
  for (const GoldenPrompt& p : report->prompts) {
    kv += static_cast<int>(p.kv.size());
    EXPECT_GT(p.clear, 0) << p.name;
    EXPECT_LT(p.max_logit_difference, 1e-3) << p.name;
  }
  EXPECT_EQ(kv, c.kv_tensors);
  EXPECT_EQ(report->bf16_rope, c.bf16_rope);
}

TEST_P(GoldenCheckTest, Bf16AgreesNearlyEverywhere) {
  const Case& c = GetParam();
  const auto report = RunGoldenCheck(
      {.model_dir = c.model_dir, .golden_file = c.golden, .compute = kernels::Compute::kBf16});
  ASSERT_TRUE(report.ok()) << report.status();
  std::printf("%s", report->ToString().c_str());
  EXPECT_TRUE(report->passed) << report->ToString();
  // Rounding must be seen: else this run was not in bf16.
  for (const GoldenPrompt& p : report->prompts) EXPECT_GT(p.max_logit_difference, 1e-4) << p.name;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenCheckTest, testing::ValuesIn(kCases),
                         [](const auto& i) { return i.param.name; });

// The goldens of one family against the weights of the other: same shapes, other arithmetic.
TEST(GoldenCheckFailureTest, WrongModelFails) {
  const auto report =
      RunGoldenCheck({.model_dir = "tests/golden/families/llama",
                      .golden_file = "tests/golden/families/qwen3/golden.safetensors"});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->passed);
  EXPECT_FALSE(report->failures.empty());
}

TEST(GoldenCheckFailureTest, FileWithoutPrompts) {
  const auto report =
      RunGoldenCheck({.model_dir = "tests/golden/families/llama",
                      .golden_file = "tests/golden/families/llama/model.safetensors"});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(report.status().message().find("holds no prompt"), absl::string_view::npos)
      << report.status();
}

TEST(GoldenCheckFailureTest, VocabularyOfAnotherModel) {
  const auto report = RunGoldenCheck({.model_dir = "tests/golden/families/llama",
                                      .golden_file = "tests/golden/golden.safetensors"});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument) << report.status();
}

}  // namespace
}  // namespace oscarkv
