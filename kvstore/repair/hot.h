// Which blocks should have extra copies, and when something is to be done about it. A pure function
// of what was read and of time.
//
// A block that a node serves more often than `reads` per second gets a copy at the next node of its
// placement order, one more per window while that goes on, up to `copies`. Copies live for `ttl`
// and are renewed after half of it as long as without one of them each holder would still serve at
// least half of `reads`; else the last one is left to its end. Readers spread over all holders,
// so what a node serves tells what all do. What could not be made is tried again after half of
// `ttl`.
#pragma once

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "kvstore/core/block_index.h"

namespace oscarkv {

struct HotOptions {
  uint32_t copies = 2;  // beyond the replicas, at most; 0: none are made
  double reads = 20;    // of a block at a node, per second
  Duration window = std::chrono::seconds(2);
  Duration ttl = std::chrono::seconds(60);
};

// Not thread-safe.
class HotPlan {
 public:
  explicit HotPlan(const HotOptions& options) : options_(options) {}

  // Reads of a block in a window that are worth being told of.
  static uint32_t ReportAt(const HotOptions& options);

  struct Step {
    BlockIndex::Hot block;
    uint32_t copies = 0;  // to make or renew, at the first extra nodes of the placement order
  };
  // A window of that length ended. `hot`: of the blocks whose first `replicas` nodes include this
  // one; `most`: nodes there are for extra copies. The steps, the most read blocks first; what is
  // not carried out comes again.
  std::vector<Step> EndWindow(absl::Span<const BlockIndex::Hot> hot, Duration length,
                              size_t replicas, uint32_t most, Time now);
  // A step was carried out: so many copies in a row are there.
  void Made(const Step& step, uint32_t copies, Time now);

  size_t blocks_with_copies() const;

 private:
  struct State {
    BlockIndex::Hot block;
    double rate = 0;  // smoothed, per second
    uint32_t copies = 0;
    Time renew_at{};
    Time raise_from{};
  };
  const HotOptions options_;
  absl::flat_hash_map<StoredKey, State> states_;
};

}  // namespace oscarkv
