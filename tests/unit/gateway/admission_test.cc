#include "gateway/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace oscarkv::gateway {
namespace {

using Ticket = Admission::Ticket;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdmissionTest : public ::testing::Test {
 protected:
  std::unique_ptr<Ticket> Enter() {
    auto ticket = admission_.Enter();
    return ticket.ok() ? *std::move(ticket) : nullptr;
  }
  std::function<void()> Mark(int id) {
    return [this, id] { started_.push_back(id); };
  }

  FakeClock clock_;
  MetricRegistry registry_;
  GatewayMetrics metrics_{&registry_};
  Admission admission_{{.max_running = 2, .max_waiting = 2}, &metrics_, &clock_};
  std::vector<int> started_;
};

TEST_F(AdmissionTest, RunsUpToTheLimitThenQueuesInOrder) {
  auto a = Enter(), b = Enter(), c = Enter(), d = Enter();
  a->Ready(Mark(1));
  b->Ready(Mark(2));
  d->Ready(Mark(4));  // ready before c: before it in the queue
  c->Ready(Mark(3));
  EXPECT_THAT(started_, ElementsAre(1, 2));
  EXPECT_EQ(admission_.running(), 2);
  EXPECT_EQ(admission_.waiting(), 2);
  a.reset();
  EXPECT_THAT(started_, ElementsAre(1, 2, 4));
  d.reset();
  EXPECT_THAT(started_, ElementsAre(1, 2, 4, 3));
  b.reset();
  c.reset();
  EXPECT_EQ(admission_.running(), 0);
  EXPECT_EQ(admission_.waiting(), 0);
}

TEST_F(AdmissionTest, RefusesBeyondBothLimitsAndSaysWhenToRetry) {
  std::vector<std::unique_ptr<Ticket>> in;
  for (int i = 0; i < 4; ++i) in.push_back(Enter());
  const auto refused = admission_.Enter();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("retry in"));
  EXPECT_THAT(refused.status().message(), HasSubstr("allowed are 2 and 2"));
  in.pop_back();
  EXPECT_NE(Enter(), nullptr);
}

TEST_F(AdmissionTest, HintFollowsTheRequestsDuration) {
  for (int i = 0; i < 60; ++i) {
    auto ticket = Enter();
    ticket->Ready([] {});
    clock_.Advance(std::chrono::seconds(20));
  }
  std::vector<std::unique_ptr<Ticket>> in;
  for (int i = 0; i < 4; ++i) in.push_back(Enter());
  // 20 s each, two at a time: a place every 10 s.
  EXPECT_THAT(admission_.Enter().status().message(), HasSubstr("retry in 10.0 s"));
}

TEST_F(AdmissionTest, WaitingTicketThatLeavesIsNotStarted) {
  auto a = Enter(), b = Enter(), c = Enter(), d = Enter();
  a->Ready(Mark(1));
  b->Ready(Mark(2));
  c->Ready(Mark(3));
  d->Ready(Mark(4));
  c.reset();
  a.reset();
  EXPECT_THAT(started_, ElementsAre(1, 2, 4));
}

TEST_F(AdmissionTest, TicketThatNeverGotReadyGivesItsPlaceBack) {
  for (int i = 0; i < 10; ++i) {
    auto a = Enter(), b = Enter(), c = Enter(), d = Enter();
    EXPECT_NE(d, nullptr);
  }
  EXPECT_EQ(admission_.waiting(), 0);
}

TEST_F(AdmissionTest, StartedFromAnotherTicketsEndWithoutLocksHeld) {
  auto a = Enter(), b = Enter(), c = Enter();
  a->Ready([] {});
  b->Ready([] {});
  int running = -1;
  c->Ready([&] { running = admission_.running(); });  // would deadlock under the admission's lock
  a.reset();
  EXPECT_EQ(running, 2);
}

TEST_F(AdmissionTest, Gauges) {
  auto a = Enter(), b = Enter(), c = Enter();
  a->Ready([] {});
  b->Ready([] {});
  clock_.Advance(std::chrono::seconds(1));
  c->Ready([] {});
  clock_.Advance(std::chrono::seconds(2));
  admission_.UpdateQueueAge();
  EXPECT_EQ(metrics_.running.value(), 2);
  EXPECT_EQ(metrics_.waiting.value(), 1);
  EXPECT_EQ(metrics_.queue_age_seconds.value(), 3);
  a.reset();
  admission_.UpdateQueueAge();
  EXPECT_EQ(metrics_.waiting.value(), 0);
  EXPECT_EQ(metrics_.queue_age_seconds.value(), 0);
  EXPECT_EQ(metrics_.queue_seconds.sum(), 3);
}

}  // namespace
}  // namespace oscarkv::gateway
