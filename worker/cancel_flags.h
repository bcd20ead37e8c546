// Which requests were cancelled, for code that cannot wait for the engine's mailbox: a long chunk,
// a long fetch.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>

#include "common/mutex.h"

namespace oscarkv::worker {

using CancelFlag = std::shared_ptr<std::atomic<bool>>;

// Thread-safe.
class CancelFlags {
 public:
  CancelFlag Add(uint64_t id) {
    MutexLock lock(mu_);
    return flags_[id] = std::make_shared<std::atomic<bool>>(false);
  }
  void Set(uint64_t id) {
    MutexLock lock(mu_);
    if (auto it = flags_.find(id); it != flags_.end()) it->second->store(true);
  }
  // Forgets the request; who holds its flag keeps it.
  void Remove(uint64_t id) {
    MutexLock lock(mu_);
    flags_.erase(id);
  }

 private:
  Mutex mu_;
  std::map<uint64_t, CancelFlag> flags_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::worker
