// Which blocks have copies beyond their replicas, because they are read much: what nodes said of
// the blocks that this client read lately.
//
// A node keeps extra copies alive for longer than what it said is remembered here, so that a reader
// seldom asks in vain; when it does, the replicas are asked next.
//
// Thread-safe. Without such blocks no lock is taken.
#pragma once

#include <algorithm>
#include <atomic>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "kvstore/types.h"

namespace oscarkv {

// At most so many extra copies of a block.
inline constexpr uint32_t kMaxExtraCopies = 4;

class ExtraCopies {
 public:
  static constexpr Duration kRemember = std::chrono::seconds(10);
  static constexpr size_t kMostBlocks = 16384;

  uint32_t Of(const BlockKey& key, Time now) const {
    if (size_.load(std::memory_order_relaxed) == 0) return 0;
    MutexLock lock(mu_);
    const auto it = known_.find(key);
    return it == known_.end() || it->second.until <= now ? 0 : it->second.copies;
  }
  void Learn(const BlockKey& key, uint32_t copies, Time now) {
    if (copies == 0) return;
    MutexLock lock(mu_);
    if (known_.size() >= kMostBlocks && !known_.contains(key)) {
      absl::erase_if(known_, [&](const auto& entry) { return entry.second.until <= now; });
      if (known_.size() >= kMostBlocks) return;
    }
    known_[key] = {std::min(copies, kMaxExtraCopies), now + kRemember};
    size_.store(known_.size(), std::memory_order_relaxed);
  }
  void Forget(const BlockKey& key) {
    if (size_.load(std::memory_order_relaxed) == 0) return;
    MutexLock lock(mu_);
    known_.erase(key);
    size_.store(known_.size(), std::memory_order_relaxed);
  }

 private:
  struct Known {
    uint32_t copies;
    Time until;
  };
  mutable Mutex mu_;
  absl::flat_hash_map<BlockKey, Known> known_ GUARDED_BY(mu_);
  std::atomic<size_t> size_{0};
};

}  // namespace oscarkv
