// A few threads for calls that block: the store's RPCs and transfers.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "common/mutex.h"

namespace oscarkv::worker {

// Thread-safe. Tasks start in the order in which they came.
class IoPool {
 public:
  // `name`: of the threads, at most 15 characters.
  IoPool(int threads, const char* name);
  // Runs what is queued, then joins.
  ~IoPool();
  void Run(std::function<void()> task);

 private:
  void Loop();

  Mutex mu_;
  CondVar arrived_;
  std::deque<std::function<void()>> tasks_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace oscarkv::worker
