#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <numeric>
#include <thread>

namespace oscarkv::kernels {
namespace {

TEST(ThreadPoolTest, EveryIndexOnce) {
  for (const int threads : {0, 1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), std::max(1, threads));
    for (const int n : {0, 1, 2, 3, 100}) {
      std::vector<std::atomic<int>> seen(n);
      pool.ParallelFor(n, [&](int i) { ++seen[i]; });
      for (int i = 0; i < n; ++i) EXPECT_EQ(seen[i], 1);
    }
  }
}

// Both indices must be running at once for either to return.
TEST(ThreadPoolTest, RunsConcurrently) {
  ThreadPool pool(2);
  std::latch both(2);
  std::atomic<int> done{0};
  pool.ParallelFor(2, [&](int) {
    both.arrive_and_wait();
    ++done;
  });
  EXPECT_EQ(done, 2);
}

TEST(ThreadPoolTest, SeveralCallersAtOnce) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(4);
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      for (int round = 0; round < 200; ++round) {
        std::atomic<int64_t> sum{0};
        pool.ParallelFor(50, [&](int i) { sum += i * (c + 1); });
        sums[c] += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int c = 0; c < 4; ++c) EXPECT_EQ(sums[c], 200 * 1225 * (c + 1));
}

// All threads wait inside outer loops; the inner ones are done by their callers.
TEST(ThreadPoolTest, Nested) {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  pool.ParallelFor(8, [&](int) { pool.ParallelFor(8, [&](int) { ++count; }); });
  EXPECT_EQ(count, 64);
}

// What the loop wrote is visible to the caller: plain ints, so that TSan sees a missing fence.
TEST(ThreadPoolTest, WritesAreVisible) {
  ThreadPool pool(4);
  for (int round = 0; round < 100; ++round) {
    std::vector<int> out(64);
    pool.ParallelFor(64, [&](int i) { out[i] = i; });
    EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 2016);
  }
}

}  // namespace
}  // namespace oscarkv::kernels
