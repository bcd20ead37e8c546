#include "common/mutex.h"

#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

struct Shared {
  Mutex mu;
  CondVar cv;
  int value GUARDED_BY(mu) = 0;
};

TEST(MutexTest, ExcludesOtherThreads) {
  Shared s;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) {
        MutexLock lock(s.mu);
        ++s.value;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  MutexLock lock(&s.mu);
  EXPECT_EQ(s.value, 40000);
}

// Two threads hand a number back and forth: neither goes on without the other's notification.
TEST(CondVarTest, PingPong) {
  Shared s;
  std::thread odd([&] {
    MutexLock lock(s.mu);
    while (s.value < 1000) {
      while (s.value % 2 == 0) s.cv.Wait(s.mu);
      ++s.value;
      s.cv.NotifyOne();
    }
  });
  {
    MutexLock lock(s.mu);
    while (s.value < 1000) {
      ++s.value;
      s.cv.NotifyAll();
      while (s.value % 2 == 1) s.cv.Wait(s.mu);
    }
  }
  odd.join();
  MutexLock lock(s.mu);
  EXPECT_EQ(s.value, 1000);
}

TEST(CondVarTest, DeadlineThatPassed) {
  Shared s;
  MutexLock lock(s.mu);
  EXPECT_FALSE(s.cv.WaitUntil(s.mu, std::chrono::steady_clock::now() - std::chrono::seconds(1)));
  EXPECT_FALSE(s.cv.WaitFor(s.mu, std::chrono::nanoseconds(0)));
  ++s.value;  // the lock is held again
}

TEST(CondVarTest, NotifiedBeforeADistantDeadline) {
  Shared s;
  std::thread other([&] {
    MutexLock lock(s.mu);
    s.value = 1;
    s.cv.NotifyAll();
  });
  bool in_time = true;
  {
    MutexLock lock(s.mu);
    while (s.value == 0 && in_time) in_time = s.cv.WaitFor(s.mu, std::chrono::hours(1));
  }
  EXPECT_TRUE(in_time);
  other.join();
}

}  // namespace
}  // namespace oscarkv
