// A few threads for what would hold up others: calls that block, tokenising a long prompt.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "common/mutex.h"

namespace oscarkv {

// Thread-safe. Tasks start in the order in which they came.
class TaskPool {
 public:
  // `name`: of the threads, at most 15 characters.
  TaskPool(int threads, const char* name);
  // Runs what was posted, then joins. Nothing may be posted from other threads by then.
  ~TaskPool();

  // Never blocks, never runs the task on the calling thread. For tasks whose number is bounded
  // elsewhere (by admission, by a pool's slots).
  void Post(std::function<void()> task);
  // False, and the task is dropped, when `max_queued` tasks wait already.
  bool TryPost(std::function<void()> task, size_t max_queued);

 private:
  void Loop();

  Mutex mu_;
  CondVar wake_;
  std::deque<std::function<void()>> tasks_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace oscarkv
