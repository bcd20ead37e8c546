// Two policies.
//
// LRU: one list by last use.
//
// S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): new blocks
// enter a small queue of a tenth of the entries; one that was used at least twice when it reaches
// the front moves to the main queue, the others go and leave their hash in a ghost list as long as
// the main queue. A block whose hash is a ghost enters the main queue at once. The front of the
// main queue goes unless it was used since, then it costs one use and moves to the back. The
// threshold of two fits our traffic: the attention worker reads each new block once, by design;
// only more than that says that a prefix is shared.
#include "kvstore/core/eviction.h"

#include <algorithm>
#include <deque>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

Time FrontUse(const EvictionList& list) {
  return list.front() == nullptr ? Time::max() : list.front()->last_use;
}

class Lru final : public EvictionPolicy {
 public:
  void OnInsert(EvictionEntry* e) override {
    e->frequency = 0;
    list_.PushBack(e);
  }
  void OnHit(EvictionEntry* e) override {
    if (e->aside) {
      e->frequency = 1;
      return;
    }
    list_.Remove(e);
    list_.PushBack(e);
  }
  void OnErase(EvictionEntry* e) override { list_.Remove(e); }
  EvictionEntry* NextVictim() override {
    EvictionEntry* e = list_.PopFront();
    if (e != nullptr) e->frequency = 0;
    return e;
  }
  void Return(EvictionEntry* e) override {
    if (e->frequency > 0) {
      list_.PushBack(e);
    } else {
      list_.PushFront(e);
    }
  }
  Time Coldest() const override { return FrontUse(list_); }

 private:
  EvictionList list_;
};

class S3Fifo final : public EvictionPolicy {
 public:
  void OnInsert(EvictionEntry* e) override {
    e->frequency = 0;
    e->queue = TakeGhost(e->key_hash) ? kMain : kSmall;
    QueueOf(e).PushBack(e);
  }
  void OnHit(EvictionEntry* e) override {
    e->frequency = std::min<uint8_t>(e->frequency + 1, kMaxFrequency);
  }
  void OnErase(EvictionEntry* e) override { QueueOf(e).Remove(e); }
  EvictionEntry* NextVictim() override {
    // Ends: every turn either returns, moves an entry from small to main, or takes one use from an
    // entry of main.
    while (small_.size() + main_.size() > 0) {
      const bool small_is_due =
          small_.size() > 0 &&
          (main_.size() == 0 || small_.size() * 10 >= small_.size() + main_.size());
      if (small_is_due) {
        EvictionEntry* e = small_.PopFront();
        if (e->frequency < kMoveToMain) {
          AddGhost(e->key_hash);
          return e;
        }
        e->frequency = 0;
        e->queue = kMain;
        main_.PushBack(e);
      } else {
        EvictionEntry* e = main_.PopFront();
        if (e->frequency == 0) return e;
        --e->frequency;
        main_.PushBack(e);
      }
    }
    return nullptr;
  }
  void Return(EvictionEntry* e) override {
    // It has not gone, so it is no ghost. The rules of its queue decide when it is a candidate
    // again, at once.
    TakeGhost(e->key_hash);
    QueueOf(e).PushFront(e);
  }
  Time Coldest() const override { return std::min(FrontUse(small_), FrontUse(main_)); }

 private:
  static constexpr uint8_t kSmall = 0, kMain = 1;
  static constexpr uint8_t kMaxFrequency = 3, kMoveToMain = 2;

  EvictionList& QueueOf(const EvictionEntry* e) { return e->queue == kSmall ? small_ : main_; }

  // Ghosts are numbered; the map holds the newest number of a hash, older ones in the queue are
  // stale.
  void AddGhost(uint64_t hash) {
    ghost_of_[hash] = ++ghost_number_;
    ghosts_.push_back({hash, ghost_number_});
    while (ghosts_.size() > std::max<size_t>(main_.size() + small_.size(), 16)) {
      const auto it = ghost_of_.find(ghosts_.front().hash);
      if (it != ghost_of_.end() && it->second == ghosts_.front().number) ghost_of_.erase(it);
      ghosts_.pop_front();
    }
  }
  bool TakeGhost(uint64_t hash) { return ghost_of_.erase(hash) > 0; }

  struct Ghost {
    uint64_t hash;
    uint64_t number;
  };
  EvictionList small_, main_;
  std::deque<Ghost> ghosts_;
  absl::flat_hash_map<uint64_t, uint64_t> ghost_of_;
  uint64_t ghost_number_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(EvictionKind kind) {
  if (kind == EvictionKind::kLru) return std::make_unique<Lru>();
  return std::make_unique<S3Fifo>();
}

absl::StatusOr<EvictionKind> ParseEvictionKind(const std::string& name) {
  if (name == "s3fifo") return EvictionKind::kS3Fifo;
  if (name == "lru") return EvictionKind::kLru;
  return absl::InvalidArgumentError(
      absl::StrCat("eviction policy '", name, "': expected s3fifo or lru"));
}

}  // namespace oscarkv
