// The latencies of the last calls, for the question: is this one slower than usual?
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv {

// Thread-safe.
class LatencyWindow {
 public:
  void Add(Duration latency) {
    MutexLock lock(mu_);
    samples_[count_++ % kSamples] = latency;
    if (count_ % kRefresh == 0) Compute();
  }
  // The 99th percentile of the last calls, within bounds; the upper bound as long as there are few.
  // The lower bound keeps ordinary jitter from doubling the load, the upper one is what a request
  // may lose to a node that stands still.
  Duration Slow() const {
    MutexLock lock(mu_);
    return slow_;
  }

 private:
  static constexpr size_t kSamples = 512, kRefresh = 32;
  static constexpr Duration kLeast = std::chrono::milliseconds(20),
                            kMost = std::chrono::milliseconds(500);

  void Compute() REQUIRES(mu_) {
    const size_t n = std::min<size_t>(count_, kSamples);
    std::vector<Duration> sorted(samples_.begin(), samples_.begin() + n);
    const auto at = sorted.begin() + n * 99 / 100;
    std::nth_element(sorted.begin(), at, sorted.end());
    slow_ = std::clamp<Duration>(*at, kLeast, kMost);
  }

  mutable Mutex mu_;
  std::array<Duration, kSamples> samples_ GUARDED_BY(mu_){};
  size_t count_ GUARDED_BY(mu_) = 0;
  Duration slow_ GUARDED_BY(mu_) = kMost;
};

}  // namespace oscarkv
