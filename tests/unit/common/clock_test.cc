#include "common/clock.h"

#include <chrono>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

TEST(ClockTest, FakeMovesOnlyWhenTold) {
  FakeClock clock;
  const Time start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  EXPECT_GT(start, Time()) << "so that times before it exist";
  clock.Advance(std::chrono::milliseconds(1500));
  EXPECT_EQ(clock.Now() - start, std::chrono::milliseconds(1500));
  clock.Advance(Duration(1));
  EXPECT_EQ((clock.Now() - start).count(), 1500000001);
}

TEST(ClockTest, SteadyNeverGoesBack) {
  const Clock* clock = SteadyClock::Get();
  EXPECT_EQ(clock, SteadyClock::Get());
  Time last = clock->Now();
  for (int i = 0; i < 1000; ++i) {
    const Time now = clock->Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

}  // namespace
}  // namespace oscarkv
