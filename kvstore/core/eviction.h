// Who goes first when memory is short. A policy orders blocks; whether a block may go (unpinned, no
// stored child) is the index's business: it takes a candidate with NextVictim and, when that one
// may not go, keeps it aside and gives it back with Return once the obstacle is gone. So no policy
// ever scans past blocked entries.
//
// Not thread-safe: a policy belongs to one shard of the index and is used under its lock.
// Deterministic: no clock, no random numbers, no iteration over hash tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace oscarkv {

// The part of a block that policies see; intrusive, owned by the index. A policy writes prev, next,
// queue and frequency only.
struct EvictionEntry {
  EvictionEntry* prev = nullptr;
  EvictionEntry* next = nullptr;
  uint64_t key_hash = 0;
  Time last_use{};  // insertion or last hit; set by the index
  uint8_t queue = 0;
  uint8_t frequency = 0;
  bool aside = false;  // taken by NextVictim and neither erased nor returned; set by the index
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // A block becomes known. The entry stays at its address until OnErase or until NextVictim handed
  // it out for good.
  virtual void OnInsert(EvictionEntry* entry) = 0;
  // It was used. Also called for entries that are aside.
  virtual void OnHit(EvictionEntry* entry) = 0;
  // It goes for another reason than eviction; not called for entries that are aside.
  virtual void OnErase(EvictionEntry* entry) = 0;
  // Takes the next candidate out of the order; null when there is none.
  virtual EvictionEntry* NextVictim() = 0;
  // An entry that NextVictim gave and that could not go comes back: as the next candidate unless it
  // was hit meanwhile.
  virtual void Return(EvictionEntry* entry) = 0;
  // About how long ago the next candidates were used: the time of last use of the front;
  // Time::max() when empty.
  virtual Time Coldest() const = 0;
};

enum class EvictionKind { kS3Fifo, kLru };
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(EvictionKind kind);
// "s3fifo" or "lru"; anything else is kInvalidArgument.
absl::StatusOr<EvictionKind> ParseEvictionKind(const std::string& name);

// A doubly linked list of entries, front = next to go.
class EvictionList {
 public:
  EvictionList() { head_.prev = head_.next = &head_; }
  EvictionList(const EvictionList&) = delete;
  EvictionList& operator=(const EvictionList&) = delete;
  void PushBack(EvictionEntry* e) { InsertBefore(&head_, e); }
  void PushFront(EvictionEntry* e) { InsertBefore(head_.next, e); }
  EvictionEntry* PopFront() {
    EvictionEntry* e = head_.next;
    if (e == &head_) return nullptr;
    Remove(e);
    return e;
  }
  void Remove(EvictionEntry* e) {
    e->prev->next = e->next;
    e->next->prev = e->prev;
    e->prev = e->next = nullptr;
    --size_;
  }
  const EvictionEntry* front() const { return size_ == 0 ? nullptr : head_.next; }
  size_t size() const { return size_; }

 private:
  void InsertBefore(EvictionEntry* at, EvictionEntry* e) {
    e->prev = at->prev;
    e->next = at;
    at->prev->next = e;
    at->prev = e;
    ++size_;
  }
  EvictionEntry head_;
  size_t size_ = 0;
};

}  // namespace oscarkv
