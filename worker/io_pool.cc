#include "worker/io_pool.h"

#include <pthread.h>

#include <utility>

namespace oscarkv::worker {

IoPool::IoPool(int threads, const char* name) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { Loop(); });
    pthread_setname_np(threads_.back().native_handle(), name);
  }
}

IoPool::~IoPool() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    arrived_.NotifyAll();
  }
  for (auto& thread : threads_) thread.join();
}

void IoPool::Run(std::function<void()> task) {
  MutexLock lock(mu_);
  tasks_.push_back(std::move(task));
  arrived_.NotifyOne();
}

void IoPool::Loop() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(mu_);
      while (tasks_.empty() && !stopping_) arrived_.Wait(mu_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace oscarkv::worker
