// Which blocks may be written to disk: a budget of bytes, and the memory of what was turned away.
//
// Not thread-safe: SsdTier uses them under its lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "common/clock.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

// So many bytes a second in the long run; what was not used in the last minute may come at once.
class WriteBudget {
 public:
  // bytes_per_second 0: no limit.
  WriteBudget(uint64_t bytes_per_second, Time now)
      : rate_(static_cast<double>(bytes_per_second)), tokens_(rate_ * kBurstSeconds), last_(now) {}
  // A block that is larger than what is left passes and leaves a debt.
  bool Take(uint64_t bytes, Time now) {
    if (rate_ == 0) return true;
    const double passed = std::chrono::duration<double>(now - last_).count();
    tokens_ = std::min(tokens_ + std::max(passed, 0.0) * rate_, rate_ * kBurstSeconds);
    last_ = now;
    if (tokens_ <= 0) return false;
    tokens_ -= static_cast<double>(bytes);
    return true;
  }

 private:
  static constexpr double kBurstSeconds = 60;
  const double rate_;
  double tokens_;
  Time last_;
};

// The last blocks that were refused for want of reuse. One that comes again was computed again: it
// is asked for more often than memory alone can serve.
class Ghosts {
 public:
  bool Take(const TierKey& key) { return hashes_.erase(HashOf(key)) > 0; }
  void Add(const TierKey& key) {
    const uint64_t hash = HashOf(key);
    if (!hashes_.insert(hash).second) return;
    order_.push_back(hash);
    while (order_.size() > kMost) {
      hashes_.erase(order_.front());
      order_.pop_front();
    }
  }

 private:
  static constexpr size_t kMost = 1 << 17;
  static uint64_t HashOf(const TierKey& key) { return absl::Hash<TierKey>()(key); }
  absl::flat_hash_set<uint64_t> hashes_;
  std::deque<uint64_t> order_;  // some of them taken since
};

}  // namespace oscarkv
