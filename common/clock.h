// Time as the code sees it, so that tests can drive it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace oscarkv {

using Duration = std::chrono::nanoseconds;
// Steady time: never jumps, has no relation to the calendar.
using Time = std::chrono::time_point<std::chrono::steady_clock, Duration>;

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Time Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  Time Now() const override { return std::chrono::steady_clock::now(); }
  // The process-wide instance.
  static SteadyClock* Get() {
    static SteadyClock clock;
    return &clock;
  }
};

// Moves only when told.
class FakeClock final : public Clock {
 public:
  Time Now() const override { return Time(Duration(ns_.load())); }
  void Advance(Duration d) { ns_.fetch_add(d.count()); }

 private:
  std::atomic<int64_t> ns_{1'000'000'000};
};

}  // namespace oscarkv
