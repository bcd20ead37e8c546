#include "kernels/thread_pool.h"

#include <pthread.h>

#include <algorithm>

namespace oscarkv::kernels {

ThreadPool::ThreadPool(int num_threads, const char* name) {
  for (int i = 1; i < num_threads; ++i) {
    threads_.emplace_back([this] { ThreadMain(); });
    pthread_setname_np(threads_.back().native_handle(),
                       name);  // fails beyond 15 characters; only a label
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_or_stop_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Work(Loop* loop) noexcept {
  for (int i; (i = loop->next.fetch_add(1, std::memory_order_relaxed)) < loop->n;) loop->f(i);
}

void ThreadPool::ThreadMain() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_or_stop_.wait(lock, [this] { return stopping_ || !loops_.empty(); });
    if (stopping_) return;
    Loop* loop = loops_.front();
    ++loop->helpers;
    lock.unlock();
    Work(loop);
    lock.lock();
    // Nothing is left to give out in this loop; the first to notice takes it off the list.
    std::erase(loops_, loop);
    if (--loop->helpers == 0) helper_left_.notify_all();
  }
}

void ThreadPool::ParallelFor(int n, const std::function<void(int)>& f) {
  if (n <= 1 || threads_.empty()) {
    for (int i = 0; i < n; ++i) f(i);
    return;
  }
  Loop loop{f, n};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    loops_.push_back(&loop);
  }
  // The caller takes a share itself.
  for (int i = std::min(n - 1, static_cast<int>(threads_.size())); i > 0; --i)
    work_or_stop_.notify_one();
  Work(&loop);
  std::unique_lock<std::mutex> lock(mutex_);
  std::erase(loops_, &loop);
  helper_left_.wait(lock, [&] { return loop.helpers == 0; });
}

}  // namespace oscarkv::kernels
