#include "prefill_worker/fetch_policy.h"

#include <gtest/gtest.h>

namespace oscarkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kMegabyte = 1'000'000;

class FetchPolicyTest : public testing::Test {
 protected:
  // Chunks of 512 tokens: 1 ms a token and 1 us more for each token before it.
  static double ChunkSeconds(int begin) { return 512 * (1e-3 + 1e-6 * (begin + 256)); }
  static Duration Of(double s) {
    return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(s));
  }
  void ComputePrompt(int tokens) {
    for (int begin = 0; begin < tokens; begin += 512)
      policy_.Computed(begin, begin + 512, Of(ChunkSeconds(begin)));
  }
  // 2 ms a get and 1 GB/s.
  void Get(uint64_t bytes, const std::string& lane = "tcp", double slower = 1) {
    policy_.Fetched(lane, bytes, bytes, Of(slower * (2e-3 + static_cast<double>(bytes) / 1e9)),
                    false);
  }

  FakeClock clock_;
  MetricRegistry registry_;
  PrefillMetrics metrics_{&registry_};
  FetchPolicy policy_{
      {.measured = true, .margin = 0.25f, .min_wait = milliseconds(50)}, &clock_, &metrics_};
};

TEST(CostFitTest, FindsBothCoefficients) {
  CostFit fit;
  for (int i = 1; i < 20; ++i) fit.Add(1, i, 3 + 0.5 * i);
  EXPECT_NEAR(fit.Predict(1, 100), 53, 1e-6);
  EXPECT_NEAR(fit.Predict(1, 0), 3, 1e-6);
}

TEST(CostFitTest, OneSizeOnlyIsProportional) {
  CostFit fit;
  EXPECT_EQ(fit.Predict(1, 10), 0);
  for (int i = 0; i < 5; ++i) fit.Add(1, 10, 2);
  EXPECT_NEAR(fit.Predict(1, 20), 4, 1e-9);
}

TEST(CostFitTest, NothingCostsLessThanNothing) {
  CostFit falling;  // the larger, the faster
  falling.Add(1, 10, 5);
  falling.Add(1, 100, 2);
  EXPECT_GE(falling.Predict(1, 1e6), 0);
  CostFit steep;  // a would be negative
  steep.Add(1, 10, 1);
  steep.Add(1, 100, 20);
  EXPECT_GE(steep.Predict(1, 0), 0);
}

TEST(CostFitTest, FollowsWhatChanges) {
  CostFit fit;
  for (int i = 1; i < 50; ++i) fit.Add(1, i, i);
  for (int i = 1; i < 50; ++i) fit.Add(1, i, 10.0 * i);
  EXPECT_NEAR(fit.Predict(1, 50), 500, 60);
}

TEST_F(FetchPolicyTest, ComputingIsPredictedAtItsLength) {
  EXPECT_FALSE(policy_.ComputeSeconds(0, 512, 1).has_value());
  ComputePrompt(4096);
  EXPECT_NEAR(*policy_.ComputeSeconds(0, 8192, 1), 8.192 * (1 + 4.096), 0.05);
  EXPECT_NEAR(*policy_.ComputeSeconds(7680, 8192, 1), ChunkSeconds(7680), 0.01);
  EXPECT_NEAR(*policy_.ComputeSeconds(0, 512, 3), 3 * ChunkSeconds(0), 0.01);  // two others
}

TEST_F(FetchPolicyTest, FetchingIsPredictedByLanesAndTheirShares) {
  EXPECT_FALSE(policy_.FetchSeconds(kMegabyte).has_value());
  for (int i = 1; i <= 20; ++i) Get(i * kMegabyte);
  EXPECT_NEAR(*policy_.FetchSeconds(100 * kMegabyte), 0.102, 1e-3);
  for (int i = 1; i <= 40; ++i) Get(i * kMegabyte, "rc", 0.1);
  // Nearly all that came lately came by the faster one.
  EXPECT_LT(*policy_.FetchSeconds(100 * kMegabyte), 0.02);
  EXPECT_GT(*policy_.FetchSeconds(100 * kMegabyte), 0.0102);
  EXPECT_NEAR(metrics_.fetch_rate.With({"tcp"}).value(), 20e6 / 0.022, 1);
}

TEST_F(FetchPolicyTest, ForgetsWhatIsOld) {
  for (int i = 1; i <= 5; ++i) Get(i * kMegabyte);
  clock_.Advance(FetchPolicy::kForget - milliseconds(1));
  EXPECT_TRUE(policy_.FetchSeconds(kMegabyte).has_value());
  clock_.Advance(milliseconds(1));
  EXPECT_FALSE(policy_.FetchSeconds(kMegabyte).has_value());
  Get(kMegabyte, "tcp", 10);  // counts alone
  EXPECT_NEAR(*policy_.FetchSeconds(kMegabyte), 0.03, 1e-6);
}

TEST_F(FetchPolicyTest, LateGetsCountForMoreThanTheyWaited) {
  for (int i = 1; i <= 5; ++i) Get(10 * kMegabyte);
  const double before = *policy_.FetchSeconds(10 * kMegabyte);
  policy_.Fetched("", 10 * kMegabyte, 0, seconds(1), /*late=*/true);
  EXPECT_GT(*policy_.FetchSeconds(10 * kMegabyte), before + 1);
  // What failed for other reasons says nothing.
  const double now = *policy_.FetchSeconds(10 * kMegabyte);
  policy_.Fetched("", 10 * kMegabyte, 0, seconds(5), /*late=*/false);
  EXPECT_EQ(*policy_.FetchSeconds(10 * kMegabyte), now);
}

TEST_F(FetchPolicyTest, DecidesByTheMargin) {
  struct Case {
    std::optional<double> fetch, compute;
    bool fetches;
  };
  const Case kCases[] = {
      {std::nullopt, 0.001, true},  // to measure it
      {1000, std::nullopt, true},  {0.9, 1.0, true},   {1.24, 1.0, true},
      {1.26, 1.0, false},          {0.049, 0.0, true},  // not worth a decision
      {0.051, 0.0, false},         {0.15, 0.11, true}, {0.17, 0.11, false},
  };
  for (const Case& c : kCases) {
    EXPECT_EQ(policy_.WorthFetching(c.fetch, c.compute), c.fetches)
        << c.fetch.value_or(-1) << " " << c.compute.value_or(-1);
  }
  const FetchPolicy always({.measured = false}, &clock_, &metrics_);
  EXPECT_TRUE(always.WorthFetching(1000, 0.001));
  EXPECT_EQ(always.Patience(0.001), Duration::max());
}

TEST_F(FetchPolicyTest, PatienceIsWhatComputingTakesAndTheMargin) {
  EXPECT_EQ(policy_.Patience(std::nullopt), Duration::max());
  EXPECT_EQ(policy_.Patience(0.0), milliseconds(50));
  EXPECT_EQ(policy_.Patience(2.0), milliseconds(2500));
  EXPECT_EQ(policy_.Patience(1e30), Duration::max());
}

}  // namespace
}  // namespace oscarkv
