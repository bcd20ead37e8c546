// Statistics and reports on figures made up here.
#include "eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "eval/treatment.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

TEST(StatisticsTest, Wilson) {
  const Interval i = WilsonInterval(8, 10);  // Wilson's own formula, by hand
  EXPECT_NEAR(i.low, 0.4902, 1e-4);
  EXPECT_NEAR(i.high, 0.9433, 1e-4);
  EXPECT_EQ(WilsonInterval(0, 0).high, 1);
  EXPECT_NEAR(WilsonInterval(10, 10).high, 1, 1e-9);
}

TEST(StatisticsTest, Student) {  // from any table
  EXPECT_NEAR(StudentQuantile(1), 12.706, 1e-3);
  EXPECT_NEAR(StudentQuantile(5), 2.571, 4e-3);
  EXPECT_NEAR(StudentQuantile(11), 2.201, 1e-3);
  EXPECT_NEAR(StudentQuantile(1000), 1.962, 1e-3);
}

// Of a mean the jackknife is the textbook's interval.
TEST(StatisticsTest, JackknifeOfAMean) {
  const double x[] = {3, 5, 4, 8, 5, 2};
  const auto mean = [&](int left_out) {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += i == left_out ? 0 : x[i];
    return sum / (left_out < 0 ? 6 : 5);
  };
  const Interval i = JackknifeInterval(6, mean);  // 4.5 +- 2.571 * 2.0736 / sqrt(6)
  EXPECT_NEAR(i.low, 4.5 - 2.1765, 3e-3);
  EXPECT_NEAR(i.high, 4.5 + 2.1765, 3e-3);
  EXPECT_TRUE(std::isinf(JackknifeInterval(1, mean).high));
}

TEST(StatisticsTest, Bootstrap) {
  // Of a mean, nearly the normal interval: 49.5 +- 1.96 * 28.87 / 10.
  const Interval mean = BootstrapInterval(100, [](const std::vector<int>& units) {
    double sum = 0;
    for (const int u : units) sum += u;
    return sum / static_cast<double>(units.size());
  });
  EXPECT_NEAR(mean.low, 49.5 - 5.66, 0.6);
  EXPECT_NEAR(mean.high, 49.5 + 5.66, 0.6);
  const auto constant = [](const std::vector<int>&) { return 3.0; };
  EXPECT_EQ(BootstrapInterval(7, constant).low, 3);
  EXPECT_EQ(BootstrapInterval(7, constant).high, 3);
  EXPECT_TRUE(std::isinf(BootstrapInterval(1, constant).high));
}

EvalReport Report() {
  EvalReport r;
  r.positions = 30;
  r.treatments.resize(3);
  const char* names[] = {"bf16", "oscar", "shaped"};
  for (int t = 0; t < 3; ++t) {
    TreatmentResult& to = r.treatments[t];
    to.name = to.codec = names[t];
    for (int w = 0; w < 3; ++w) {
      to.divergence.window_kl.push_back(t * 0.02 / (t * t + 1e-9) * (1 + 0.1 * w) * (t > 0));
      to.divergence.window_nll.push_back(3 + 0.1 * w + (t == 0 ? 0 : 0.02 / t));
      to.divergence.window_top1.push_back(1 - 0.05 * t);
      to.divergence.window_p99.push_back(0.1 * t);
    }
    to.needles = {{2048, {1, 1, t != 1}}, {4096, {1, t != 2, t != 1}}};
  }
  r.treatments[1].layers = {{0.5, 0.3}};
  return r;
}

TEST(ReportTest, Compare) {
  const EvalReport r = Report();
  const PairedComparison c = Compare(r.treatments[0], r.treatments[1], r.treatments[2]);
  EXPECT_NEAR(c.kl_ratio, 0.5, 1e-6);  // the same in every window: no width
  EXPECT_NEAR(c.kl_interval.high - c.kl_interval.low, 0, 1e-6);
  EXPECT_NEAR(c.loss_ratio, (std::exp(0.01) - 1) / (std::exp(0.02) - 1), 1e-6);
  EXPECT_EQ(c.questions, 6);
  EXPECT_EQ(c.only_this, 2);
  EXPECT_EQ(c.only_other, 1);
  EXPECT_NEAR(c.needle_difference(), 1.0 / 6, 1e-9);
  // Texts of +1 and 0 of three: 1/6 +- 12.706 * sqrt((1/3 - 1/6)^2 + (0 - 1/6)^2) / sqrt(2).
  EXPECT_NEAR(c.needle_interval.high, 1.0 / 6 + 12.7062 / 6, 1e-3);
}

TEST(ReportTest, Tables) {
  const std::string table = Report().ToTable();
  EXPECT_THAT(table, HasSubstr("| treatment | bits | perplexity | KL to bf16 | KL p99 | top-1 | "
                               "needles at 2048 | needles at 4096 | all questions |"));
  EXPECT_THAT(table, HasSubstr("2 of 3"));
  EXPECT_THAT(table, HasSubstr("| shaped | 0.500 (0.500 to 0.500) |"));
  EXPECT_THAT(table, HasSubstr("2 / 1 of 6 | +0.1667"));
  EXPECT_THAT(table, HasSubstr("| 0 | 0.500 / 0.300 |"));
  EvalReport needles_only = Report();
  for (TreatmentResult& t : needles_only.treatments) t.divergence = {};
  EXPECT_THAT(needles_only.ToTable(), Not(HasSubstr("perplexity |")));
}

TEST(ReportTest, TasksAndGreedyContinuations) {
  EvalReport r = Report();
  EXPECT_THAT(r.ToTable(), Not(HasSubstr("Greedy")));
  r.greedy_tokens = 50;
  for (TreatmentResult& t : r.treatments) {
    t.needles.push_back({2048, {1}, "single"});
    t.needles.push_back({2048, {0, 1}, "copy"});
    t.greedy = {50, 20, t.name == "oscar" ? 4.0 : 30};
  }
  const std::string table = r.ToTable();
  EXPECT_THAT(table, HasSubstr("copies at 2048 | needles at 2048 | needles at 4096 | "
                               "single needles at 2048 | all questions |"));
  EXPECT_THAT(table, HasSubstr("| oscar | 20.0 (4.0 to 50.0) | 24.7 ("));
  EXPECT_THAT(table, HasSubstr(") | 1 of 3 |"));
  const std::string json = r.ToJson();
  auto again = EvalReport::FromJson(json);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->ToTable(), table);
  EXPECT_EQ(again->ToJson(), json);
  ASSERT_TRUE(again->Add(r).ok());
  EXPECT_EQ(again->treatments[1].greedy.size(), 6u);
  again->greedy_tokens = 9;
  EXPECT_THAT(std::string(again->Add(r).message()), HasSubstr("50 tokens, expected 9"));
}

TEST(ReportTest, JsonRefused) {
  const std::string good = Report().ToJson();
  ASSERT_TRUE(EvalReport::FromJson(good).ok());
  const auto broken = [&](absl::string_view from, absl::string_view to) {
    std::string json = good;
    json.replace(json.find(std::string(from)), from.size(), std::string(to));
    return std::string(EvalReport::FromJson(json).status().message());
  };
  EXPECT_THAT(broken("\"positions\"", "\"position\""), HasSubstr("no positions"));
  EXPECT_THAT(broken("\"window_nll\"", "\"window\""), HasSubstr("lacks the list window_nll"));
  EXPECT_THAT(broken("\"length\": 2048", "\"length\": -2"), HasSubstr("no length"));
  EXPECT_THAT(broken("\"length\": 2048", "\"length\": 1024"), HasSubstr("differ in their needles"));
  EXPECT_THAT(broken("\"task\": \"multi\"", "\"task\": \"many\""), HasSubstr("task is none of"));
  EXPECT_THAT(broken("\"greedy\": []", "\"greedy\": [1]"), HasSubstr("length of greedy"));
  EXPECT_THAT(std::string(EvalReport::FromJson("{}").status().message()), HasSubstr("no report"));
  EXPECT_THAT(std::string(EvalReport::FromJson("[").status().message()), HasSubstr("no report"));
}

TEST(FakeQuantiseTest, ByHand) {
  // Four rows' worth of thought in one: clip .75 of 8 takes the sixth smallest magnitude, 4.
  std::vector<kernels::Bf16> row;
  for (const float v : {-4.0f, 1.0f, 2.0f, 3.0f, 4.0f, 8.0f, 0.5f, -1.0f})
    row.push_back(kernels::ToBf16(v));
  FakeQuantise(row.data(), 1, 8, 0.75f);  // sorted: .5 1 1 2 3 4 4 8; levels -4, -4/3, 4/3, 4
  const float third = kernels::ToFloat(kernels::ToBf16(4.0f / 3));
  const float expected[] = {-4, third, third, 4, 4, 4, third, -third};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(kernels::ToFloat(row[i]), expected[i]) << i;
}

}  // namespace
}  // namespace oscarkv
