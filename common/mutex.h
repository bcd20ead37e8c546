// Annotated locks: std::mutex and std::condition_variable under clang's thread-safety analysis.
//
// Not absl::Mutex: Debian's abseil is not instrumented for ThreadSanitizer, which then reports
// false races.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "common/thread_annotations.h"

#if defined(__SANITIZE_THREAD__)
#define OSCARKV_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define OSCARKV_TSAN 1
#endif
#endif

namespace oscarkv {

class CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() ACQUIRE() { mu_.lock(); }
  void Unlock() RELEASE() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ACQUIRE(mu) : mu_(mu) { mu_->Lock(); }
  explicit MutexLock(Mutex& mu) ACQUIRE(mu) : mu_(&mu) { mu_->Lock(); }
  ~MutexLock() RELEASE() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Waits may wake spuriously: call them in a loop that tests the condition. Deadlines are the steady
// clock's: setting the wall clock neither shortens nor lengthens a wait.
class CondVar {
 public:
  void Wait(Mutex& mu) REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // Returns false when `deadline` passed.
  bool WaitUntil(Mutex& mu, std::chrono::steady_clock::time_point deadline) REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
#ifdef OSCARKV_TSAN
    // gcc 12's TSan does not intercept pthread_cond_clockwait.
    const auto left = deadline - std::chrono::steady_clock::now();
    const bool ok =
        cv_.wait_until(lock, std::chrono::system_clock::now() + left) == std::cv_status::no_timeout;
#else
    const bool ok = cv_.wait_until(lock, deadline) == std::cv_status::no_timeout;
#endif
    lock.release();
    return ok;
  }
  bool WaitFor(Mutex& mu, std::chrono::nanoseconds timeout) REQUIRES(mu) {
    return WaitUntil(mu, std::chrono::steady_clock::now() + timeout);
  }
  void NotifyOne() {
    cv_.notify_one();
  }
  void NotifyAll() {
    cv_.notify_all();
  }

 private:
  std::condition_variable cv_;
};

}  // namespace oscarkv
