#include "gateway/tenant_quota.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "gateway/retry_hint.h"

namespace oscarkv::gateway {
namespace {

using ::testing::HasSubstr;

class TenantQuotaTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  std::map<std::string, auth::TenantLimits> limits_ = {{"two", {2, 0}}, {"slow", {0, 100}}};
  TenantQuota quota_{[this](const std::string& tenant) { return limits_[tenant]; }, &clock_};
};

TEST_F(TenantQuotaTest, RequestsAtOnce) {
  auto first = quota_.Enter("two"), second = quota_.Enter("two");
  ASSERT_TRUE(first.ok() && second.ok());
  const auto third = quota_.Enter("two");
  EXPECT_TRUE(absl::IsResourceExhausted(third.status()));
  EXPECT_THAT(std::string(third.status().message()),
              HasSubstr("tenant 'two': limit max-running=2"));
  EXPECT_TRUE(quota_.Enter("other").ok()) << "tenants do not touch each other";
  (*first)->Leave();
  (*first)->Leave();
  const auto fourth = quota_.Enter("two");
  EXPECT_TRUE(fourth.ok());
  EXPECT_FALSE(quota_.Enter("two").ok()) << "leaving twice counts once";
  second->reset();
  EXPECT_TRUE(quota_.Enter("two").ok());
}

TEST_F(TenantQuotaTest, TokensPerSecond) {
  for (int i = 0; i < 5; ++i) {
    const auto share = quota_.Enter("slow");
    ASSERT_TRUE(share.ok()) << i << share.status();
    (*share)->Charge(200);  // the burst of ten seconds is 1000
  }
  const auto refused = quota_.Enter("slow");
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("tenant 'slow': limit tokens-per-second=100: retry in 1 s"));
  clock_.Advance(std::chrono::seconds(1));
  {
    const auto share = quota_.Enter("slow");
    ASSERT_TRUE(share.ok());
    (*share)->Charge(1100);  // 1000 in debt
  }
  EXPECT_THAT(std::string(quota_.Enter("slow").status().message()), HasSubstr("retry in 11 s"));
  EXPECT_EQ(RetryHintSeconds(quota_.Enter("slow").status()), 11);
  clock_.Advance(std::chrono::seconds(10));
  EXPECT_FALSE(quota_.Enter("slow").ok());
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(quota_.Enter("slow").ok());
  clock_.Advance(std::chrono::hours(1));
  ASSERT_TRUE(quota_.Enter("slow").ok());
  (*quota_.Enter("slow"))->Charge(1001);
  EXPECT_FALSE(quota_.Enter("slow").ok()) << "no more than the burst is saved up";
}

TEST_F(TenantQuotaTest, LimitsThatChangeHoldAtOnce) {
  (*quota_.Enter("new"))->Charge(1'000'000);
  limits_["new"] = {0, 10};
  EXPECT_TRUE(quota_.Enter("new").ok()) << "what was free before is no debt";
  limits_["slow"] = {};
  const auto share = quota_.Enter("slow");
  (*share)->Charge(1'000'000);
  EXPECT_TRUE(quota_.Enter("slow").ok());
  limits_["two"] = {1, 0};
  const auto one = quota_.Enter("two");
  EXPECT_TRUE(one.ok());
  EXPECT_FALSE(quota_.Enter("two").ok());
}

TEST_F(TenantQuotaTest, ManyNamesAreForgottenDebtsAreNot) {
  (*quota_.Enter("slow"))->Charge(5000);
  for (int i = 0; i < 10'000; ++i) ASSERT_TRUE(quota_.Enter(absl::StrCat("t", i)).ok());
  EXPECT_FALSE(quota_.Enter("slow").ok());
}

}  // namespace
}  // namespace oscarkv::gateway
