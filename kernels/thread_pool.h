// A fixed pool of threads that implements Executor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/types.h"

namespace oscarkv::kernels {

// `num_threads` counts the calling thread: num_threads - 1 threads are started, named `name`.
// ParallelFor may be called from several threads at once, and from within f: every caller works on
// its own loop until its indices are given out, so that it makes progress without the pool. Indices
// are given out one by one in ascending order. f must not throw.
class ThreadPool : public Executor {
 public:
  explicit ThreadPool(int num_threads, const char* name = "okv-kernel");
  ~ThreadPool() override;  // no ParallelFor may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const override { return static_cast<int>(threads_.size()) + 1; }
  void ParallelFor(int n, const std::function<void(int)>& f) override;

 private:
  // One ParallelFor; lives on its caller's stack. `helpers` counts the pool threads inside: the
  // caller leaves at zero.
  struct Loop {
    const std::function<void(int)>& f;
    const int n;
    std::atomic<int> next{0};
    int helpers = 0;  // guarded by mutex_
  };

  void ThreadMain();
  static void Work(Loop* loop) noexcept;

  // This room uses nothing of ours, hence a plain std::mutex. It guards loops_, stopping_ and
  // Loop::helpers.
  std::mutex mutex_;
  std::condition_variable work_or_stop_;
  std::condition_variable helper_left_;
  std::deque<Loop*> loops_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace oscarkv::kernels
