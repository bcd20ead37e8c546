// Evaluation on a short window of a book, and its arithmetic.
#include "eval/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "codec/tensor_file.h"
#include "eval/fit_shaped.h"
#include "eval/treatment.h"
#include "nlohmann/json.hpp"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

TEST(EvaluateTest, Arithmetic) {
  const float logits[] = {0, std::log(3.0f)}, other[] = {5, 5};
  EXPECT_NEAR(LogSumExp(logits, 2), std::log(4.0), 1e-6);
  const float p[] = {0.25f, 0.75f}, log_p[] = {std::log(0.25f), std::log(0.75f)};
  EXPECT_NEAR(KlDivergence(log_p, p, logits, 2), 0, 1e-6);
  EXPECT_NEAR(KlDivergence(log_p, p, other, 2),
              0.25 * std::log(0.25 / 0.5) + 0.75 * std::log(0.75 / 0.5), 1e-6);
}

// Fits shaped on one book, evaluates on the other: the order of the treatments is what the design
// promises, far beyond what a thousand positions can move.
TEST(EvaluateTest, OrderOfTreatments) {
  const std::string dir = testing::TempDir() + "/evaluate_test";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  CollectOptions collect;
  collect.model_dir = "models/reference";
  collect.text_files = {"tests/data/styles.txt"};
  collect.plan.tokens = 6144;
  collect.importance = true;
  collect.compute = kernels::Compute::kFp32;
  const auto collected = CollectStats(collect);
  ASSERT_TRUE(collected.ok()) << collected.status();
  const auto fit = FitShapedProfile(*collected, {});
  ASSERT_TRUE(fit.ok()) << fit.status();
  for (const LayerSummary& layer : fit->summary) {
    EXPECT_LT(layer.sides[0].damage_after, 0.5 * layer.sides[0].damage_before);
    EXPECT_LT(layer.sides[1].damage_after, 0.9 * layer.sides[1].damage_before);
    EXPECT_LT(layer.sides[0].condition, 100);
  }
  for (const char* name : {"k_rotation_qqt_r_h_pbr.pt", "v_rotation_sst_r_h_pbr.pt"})
    std::filesystem::copy_file(std::string("models/reference/") + name, dir + "/" + name);
  ASSERT_TRUE(
      WriteWholeFile(dir + "/codec_shaped.safetensors", WriteShapedFile(fit->parameters)).ok());

  EvalOptions options;
  options.model_dir = "models/reference";
  options.text_files = {"tests/data/wendigo.txt"};
  options.treatments = {"naive", "oscar", "shaped", "oscar-fake", "oscar-nowin"};
  options.fitted_dir = dir;
  options.windows = 1;
  options.window_tokens = 1536;
  options.needle_lengths = {1024};
  options.needles = 2;
  options.compute = kernels::Compute::kFp32;
  const auto report = Evaluate(options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->treatments.size(), 6u);
  EXPECT_EQ(report->positions, 1536 - 1 - 600);
  const auto kl = [&](int i) { return report->treatments[i].divergence.window_kl[0]; };
  EXPECT_EQ(kl(0), 0);
  EXPECT_LT(kl(2), 0.5 * kl(1));
  EXPECT_LT(kl(3), 0.7 * kl(2));
  EXPECT_GT(kl(3), 1e-4);
  // Codes, pages and attention over them against floating point: two paths that share no code but
  // the model.
  EXPECT_NEAR(kl(4), kl(2), 0.1 * kl(2));
  EXPECT_GT(kl(5), 1.5 * kl(2));
  const auto& shaped = report->treatments[3];
  EXPECT_EQ(shaped.bits, 2.25);
  EXPECT_GT(shaped.divergence.window_p99[0], shaped.divergence.window_kl[0]);
  ASSERT_EQ(shaped.layers.size(), 8u);
  for (int l = 0; l < 8; ++l) {
    EXPECT_LT(shaped.layers[l].score, report->treatments[1].layers[l].score);
    EXPECT_LT(shaped.layers[l].value, report->treatments[1].layers[l].value);
  }
  ASSERT_EQ(report->treatments[0].needles.size(), 1u);
  EXPECT_EQ(report->treatments[0].needles[0].right.size(), 2u);
  EXPECT_THAT(report->ToTable(), HasSubstr("| shaped | 2.25 |"));
  const auto json = nlohmann::json::parse(report->ToJson(), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["treatments"][3]["name"], "shaped");
  EXPECT_EQ(json["treatments"][3]["layer_score_error"].size(), 8u);
  auto again = EvalReport::FromJson(report->ToJson());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->ToTable(), report->ToTable());
  ASSERT_TRUE(again->Add(*report).ok());
  EXPECT_EQ(again->positions, 2 * report->positions);
  EXPECT_EQ(again->treatments[1].divergence.window_kl.size(), 2u);
  again->treatments.pop_back();
  EXPECT_THAT(std::string(again->Add(*report).message()), HasSubstr("oscar-nowin, expected bf16"));
  std::filesystem::remove_all(dir);
}

TEST(EvaluateTest, Refused) {
  const kernels::KvShape shape = {8, 2, 128};
  EXPECT_THAT(std::string(MakeTreatment("best", "models/reference", shape).status().message()),
              HasSubstr("known are naive"));
  EvalOptions options;
  options.model_dir = "models/reference";
  EXPECT_THAT(std::string(Evaluate(options).status().message()), HasSubstr("--text"));
  // Before the work, not minutes later.
  options.text_files = {"tests/data/wendigo.txt"};
  options.needle_tasks = {"multi", "riddle"};
  EXPECT_THAT(std::string(Evaluate(options).status().message()), HasSubstr("task \"riddle\""));
  options.needle_tasks = {"multi"};
  options.greedy_tokens = 65536;
  EXPECT_THAT(std::string(Evaluate(options).status().message()), HasSubstr("exceed the model's"));
}

}  // namespace
}  // namespace oscarkv
