#include "common/rpc/steady_waits.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace oscarkv::rpc {
namespace {

struct Shared {
  absl::Mutex mu;
  absl::CondVar cv;
  int value = 0;
};

TEST(SteadyWaitsTest, TimedWaitsOfAbseilGoThroughTheHook) {
  RequireSteadyWaits();
  Shared s;
  const uint64_t before = SteadyWaits();
  absl::MutexLock lock(&s.mu);
  EXPECT_TRUE(s.cv.WaitWithTimeout(&s.mu, absl::Milliseconds(20)));  // timed out
  EXPECT_GT(SteadyWaits(), before);
}

TEST(SteadyWaitsTest, AWaitLastsAsLongAsItShould) {
  Shared s;
  absl::MutexLock lock(&s.mu);
  const auto start = std::chrono::steady_clock::now();
  while (!s.cv.WaitWithDeadline(&s.mu, absl::Now() + absl::Milliseconds(50))) {
  }
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(49));
  EXPECT_TRUE(s.cv.WaitWithDeadline(&s.mu, absl::Now() - absl::Hours(1)));
  EXPECT_TRUE(s.cv.WaitWithDeadline(&s.mu, absl::InfinitePast()));
}

// Neither a notification nor a lock handed over is lost, with deadlines far away and without.
TEST(SteadyWaitsTest, PingPong) {
  for (const absl::Duration timeout : {absl::Hours(24 * 365), absl::InfiniteDuration()}) {
    Shared s;
    const auto play = [&](int parity) {
      absl::MutexLock lock(&s.mu);
      while (s.value < 2000) {
        while (s.value % 2 != parity && s.value < 2000) s.cv.WaitWithTimeout(&s.mu, timeout);
        ++s.value;
        s.cv.SignalAll();
      }
    };
    std::thread even([&] { play(0); });
    play(1);
    even.join();
    EXPECT_GE(s.value, 2000);
  }
}

// gRPC's timers, too.
TEST(SteadyWaitsTest, AlarmsGoOff) {
  grpc::CompletionQueue queue;
  grpc::Alarm alarm;
  const uint64_t before = SteadyWaits();
  alarm.Set(&queue, std::chrono::system_clock::now() + std::chrono::milliseconds(300), nullptr);
  void* tag;
  bool ok = false;
  EXPECT_TRUE(queue.Next(&tag, &ok));
  EXPECT_TRUE(ok);
  EXPECT_GT(SteadyWaits(), before);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
}

}  // namespace
}  // namespace oscarkv::rpc
