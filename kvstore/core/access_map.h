// The byte ranges of the arena that a session may touch, for the data path's check of each access.
#pragma once

#include <cstdint>
#include <map>

namespace oscarkv {

// Ranges of blocks: two are either the same or apart. Thread-compatible.
class AccessMap {
 public:
  // The same range may be added several times, and is then removed as often.
  void Add(uint64_t offset, uint64_t size) {
    Range& range = ranges_[offset];
    range.size = size;
    ++range.count;
  }
  // Of a range that is not there: nothing.
  void Remove(uint64_t offset) {
    const auto it = ranges_.find(offset);
    if (it != ranges_.end() && --it->second.count == 0) ranges_.erase(it);
  }
  bool Covers(uint64_t offset, uint64_t length) const {
    auto it = ranges_.upper_bound(offset);
    if (it == ranges_.begin()) return false;
    --it;
    const uint64_t inside = offset - it->first;
    return inside <= it->second.size && length <= it->second.size - inside;
  }

 private:
  struct Range {
    uint64_t size = 0, count = 0;
  };
  std::map<uint64_t, Range> ranges_;  // by offset
};

}  // namespace oscarkv
