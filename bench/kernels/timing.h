// Timing for the kernel benchmarks: CPU time of the process (all threads together), the best of
// several rounds. On a shared machine wall time says more about the neighbours than the kernel.
#pragma once

#include <time.h>

#include <algorithm>
#include <functional>
#include <limits>

namespace oscarkv::bench {

inline double Seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// CPU seconds per call of f: the best of `rounds` rounds of at least `round_s` seconds each.
inline double TimePerCall(const std::function<void()>& f, int rounds = 5, double round_s = 0.05) {
  f();
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < rounds; ++round) {
    const double start = Seconds();
    int calls = 0;
    double elapsed = 0;
    do {
      f();
      ++calls;
      elapsed = Seconds() - start;
    } while (elapsed < round_s);
    best = std::min(best, elapsed / calls);
  }
  return best;
}

}  // namespace oscarkv::bench
