// The registered regions of one transport, found by id (requests of peers) or by address (local
// side of an op).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "absl/types/span.h"
#include "common/mutex.h"

namespace oscarkv {

// Memory that transfers may touch. Kept alive (mapped, registered) by every transfer that uses it;
// derived classes release it.
struct RegionCore {
  virtual ~RegionCore() = default;
  uint64_t id = 0;
  // What a peer must present to reach the region; 0: not exported.
  uint64_t token = 0;
  absl::Span<uint8_t> span;  // not empty
};

// Overlapping regions are allowed. Thread-safe.
class RegionTable {
 public:
  void Add(std::shared_ptr<RegionCore> region) {
    MutexLock lock(mu_);
    by_address_.emplace(reinterpret_cast<uintptr_t>(region->span.data()), region);
    by_id_.emplace(region->id, std::move(region));
  }

  void Remove(uint64_t id) {
    std::shared_ptr<RegionCore> removed;  // destroyed without the lock
    MutexLock lock(mu_);
    auto it = by_id_.find(id);
    if (it == by_id_.end()) return;
    removed = std::move(it->second);
    by_id_.erase(it);
    auto [first, last] = by_address_.equal_range(reinterpret_cast<uintptr_t>(removed->span.data()));
    while (first->second->id != id) ++first;
    by_address_.erase(first);
  }

  std::shared_ptr<RegionCore> FindId(uint64_t id) const {
    MutexLock lock(mu_);
    auto it = by_id_.find(id);
    return it == by_id_.end() ? nullptr : it->second;
  }

  // The region that contains [data, data + length); null when none does.
  std::shared_ptr<RegionCore> FindAddress(const uint8_t* data, uint64_t length) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    MutexLock lock(mu_);
    // Regions are few: walk back from the first that begins behind the address, over those that
    // might contain it.
    for (auto it = by_address_.upper_bound(address); it != by_address_.begin();) {
      --it;
      const uint64_t before = address - it->first;
      const uint64_t size = it->second->span.size();
      if (before <= size && length <= size - before) return it->second;
    }
    return nullptr;
  }

 private:
  mutable Mutex mu_;
  std::map<uint64_t, std::shared_ptr<RegionCore>> by_id_ GUARDED_BY(mu_);
  std::multimap<uintptr_t, std::shared_ptr<RegionCore>> by_address_ GUARDED_BY(mu_);
};

}  // namespace oscarkv
