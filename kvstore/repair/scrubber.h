// Reads all blocks in memory slowly and compares them with their checksums. What differs is erased;
// the repairers of the other nodes bring a good copy back.
#pragma once

#include <thread>

#include "common/metrics.h"
#include "common/mutex.h"
#include "kvstore/core/kv_node.h"

namespace oscarkv {

// Threads: one, from the constructor to the destructor.
class Scrubber {
 public:
  // Reads at most `bytes_per_second`, which is not 0. `node` outlives it; `scrubbed` may be null.
  Scrubber(KvNode* node, uint64_t bytes_per_second, Metric* scrubbed);
  ~Scrubber();

 private:
  void Run();
  bool PauseUntil(Time time);  // false: stopped

  KvNode* const node_;
  const uint64_t rate_;
  Metric* const scrubbed_;
  Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::thread thread_;  // last
};

}  // namespace oscarkv
