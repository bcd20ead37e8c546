#include "common/task_pool.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

// Holds a pool's only thread until it is opened.
class Gate {
 public:
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Enter() {
    MutexLock lock(mu_);
    entered_ = true;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
  }
  void AwaitEntered() {
    MutexLock lock(mu_);
    while (!entered_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ GUARDED_BY(mu_) = false;
  bool entered_ GUARDED_BY(mu_) = false;
};

TEST(TaskPoolTest, TasksOfOneThreadRunInOrderAndAllRunBeforeTheEnd) {
  std::vector<int> order;
  {
    TaskPool pool(1, "test");
    for (int i = 0; i < 100; ++i) pool.Post([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(TaskPoolTest, TryPostRefusesWhenTooManyWait) {
  std::atomic<int> ran = 0;
  Gate gate;
  {
    TaskPool pool(1, "test");
    pool.Post([&gate] { gate.Enter(); });
    gate.AwaitEntered();
    EXPECT_TRUE(pool.TryPost([&ran] { ++ran; }, 2));
    EXPECT_TRUE(pool.TryPost([&ran] { ++ran; }, 2));
    EXPECT_FALSE(pool.TryPost([&ran] { ran += 100; }, 2));
    pool.Post([&ran] { ++ran; });
    gate.Open();
  }
  EXPECT_EQ(ran, 3);
}

TEST(TaskPoolTest, ThreadsWorkSideBySide) {
  Gate first, second;
  TaskPool pool(2, "test");
  pool.Post([&first] { first.Enter(); });
  pool.Post([&second] { second.Enter(); });
  // Both are inside at once, or this would never end.
  first.AwaitEntered();
  second.AwaitEntered();
  first.Open();
  second.Open();
}

}  // namespace
}  // namespace oscarkv
