// The registered regions of one transport, found by id (requests of peers) or by address (local
// side of an op).
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "absl/types/span.h"
#include "common/mutex.h"

namespace oscarkv {

// R has `absl::Span<uint8_t> span` and `uint64_t id`; regions are not empty. Overlapping regions
// are allowed. Thread-safe.
template <typename R>
class RegionTable {
 public:
  void Add(std::shared_ptr<R> region) {
    MutexLock lock(mu_);
    by_address_.emplace(reinterpret_cast<uintptr_t>(region->span.data()), region);
    by_id_.emplace(region->id, std::move(region));
  }

  void Remove(uint64_t id) {
    MutexLock lock(mu_);
    auto it = by_id_.find(id);
    if (it == by_id_.end()) return;
    auto [first, last] =
        by_address_.equal_range(reinterpret_cast<uintptr_t>(it->second->span.data()));
    for (; first != last; ++first) {
      if (first->second->id == id) {
        by_address_.erase(first);
        break;
      }
    }
    by_id_.erase(it);
  }

  std::shared_ptr<R> FindId(uint64_t id) const {
    MutexLock lock(mu_);
    auto it = by_id_.find(id);
    return it == by_id_.end() ? nullptr : it->second;
  }

  // The region that contains [data, data + length); null when none does.
  std::shared_ptr<R> FindAddress(const uint8_t* data, uint64_t length) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    MutexLock lock(mu_);
    // Regions are few: walk back from the first that begins behind the address, over those that
    // might overlap it.
    for (auto it = by_address_.upper_bound(address); it != by_address_.begin();) {
      --it;
      const uint64_t before = address - it->first;
      const uint64_t size = it->second->span.size();
      if (before <= size && length <= size - before) return it->second;
    }
    return nullptr;
  }

  size_t size() const {
    MutexLock lock(mu_);
    return by_id_.size();
  }

 private:
  mutable Mutex mu_;
  std::map<uint64_t, std::shared_ptr<R>> by_id_ GUARDED_BY(mu_);
  std::multimap<uintptr_t, std::shared_ptr<R>> by_address_ GUARDED_BY(mu_);
};

}  // namespace oscarkv
