// Where the copies of a node's blocks belong: pure functions of the members, of who is there, and
// of a list of blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kvstore/cluster/membership.h"
#include "kvstore/cluster/placement.h"
#include "kvstore/core/block_index.h"

namespace oscarkv {

// A node as its peer sees it.
enum class Presence {
  kHere,    // answers, or may be expected to
  kSilent,  // does not answer, but not for long enough to do without it
  kGone,    // dead, leaving, or this node itself when it drains: another one takes its place
};

// The nodes at one moment. Immutable.
class RepairView {
 public:
  // presence[i] is of members[i]. `replicas`: copies wanted.
  RepairView(std::vector<Member> members, std::vector<Presence> presence, size_t replicas);

  // The nodes that should have a block: the first `replicas` of its placement order that are not
  // gone. Replaces *owners; fewer when there are not enough nodes.
  void Owners(const BlockKey& placement, std::vector<uint32_t>* owners) const {
    First(replicas_, placement, owners);
  }
  // The same, of the first `count`: behind the owners come the places of extra copies.
  void First(size_t count, const BlockKey& placement, std::vector<uint32_t>* nodes) const;

  const std::vector<Member>& members() const { return members_; }
  Presence presence(uint32_t node) const { return presence_[node]; }
  size_t replicas() const { return replicas_; }
  // Their index; members().size(): not there.
  uint32_t IndexOf(const std::string& endpoint) const;
  bool operator==(const RepairView& other) const {
    return members_ == other.members_ && presence_ == other.presence_ &&
           replicas_ == other.replicas_;
  }

 private:
  std::vector<Member> members_;
  std::vector<Presence> presence_;
  size_t replicas_;
  Placement placement_;
  size_t gone_ = 0;
};

// What a node finds out about its blocks without asking anybody.
struct Survey {
  struct OfPeer {
    std::vector<uint64_t> digests;               // of the blocks that both should have
    std::vector<std::vector<uint32_t>> buckets;  // these, as indices of the list, by bucket
    std::vector<uint32_t> guests;  // blocks that the peer should have, and this node need not
  };
  std::vector<OfPeer> peers;       // one per member; empty for this node
  std::vector<bool> no_node;       // per block: fewer nodes than copies
  std::vector<bool> silent_owner;  // per block: a node that should have it does not answer
};
Survey SurveyBlocks(const RepairView& view, uint32_t self,
                    absl::Span<const BlockIndex::Listed> blocks);

// How many copies there should be: `wanted`, or with 0 two when there are two nodes that stay.
size_t ReplicasOf(absl::Span<const Member> members, int wanted);

}  // namespace oscarkv
