// Which node holds a block: rendezvous hashing (highest random weight; Thaler and Ravishankar 1998)
// of the placement key over the nodes' names. Every client computes the same owner without talking
// to anybody, and a node that joins or leaves moves only its own share. The weights are part of the
// wire contract: a change moves every block.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kvstore/block_key.h"

namespace oscarkv {

// Immutable, hence thread-safe.
class Placement {
 public:
  explicit Placement(absl::Span<const std::string> nodes);
  // Index of the owner in `nodes`. There must be one node at least.
  size_t OwnerOf(const BlockKey& placement) const;

 private:
  std::vector<uint64_t> seeds_;  // one per node, from its name
};

}  // namespace oscarkv
