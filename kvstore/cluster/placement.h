// Which nodes hold a block: weighted rendezvous hashing (highest random weight; Thaler and
// Ravishankar 1998, weights after Schindelhauer and Schomaker 2005) of the placement key over the
// nodes' names. Every client computes the same order without talking to anybody, and a node that
// joins or leaves moves only its own share. The hash is part of the wire contract: a change moves
// every block.
//
// Zones. The order is by (place within its zone, score): the best node of each zone comes before
// any zone's second. So the first R nodes are in R zones when there are that many. A node without a
// zone is a zone of its own.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kvstore/block_key.h"
#include "kvstore/cluster/membership.h"

namespace oscarkv {

// Immutable, hence thread-safe.
class Placement {
 public:
  // Of the members only endpoint, zone and weight matter.
  explicit Placement(absl::Span<const Member> members);
  // The first `count` nodes (fewer if there are fewer) that should hold a block, as indices in
  // `members`; replaces *order.
  void Order(const BlockKey& placement, size_t count, std::vector<uint32_t>* order) const;
  // The first of them. There must be one node at least.
  size_t OwnerOf(const BlockKey& placement) const;

 private:
  struct Node {
    uint64_t seed;  // from its name
    uint32_t zone;  // index
    double weight;
  };
  std::vector<Node> nodes_;
  uint32_t num_zones_ = 0;
  bool equal_weights_ = true;
};

}  // namespace oscarkv
