// Which nodes a call talks to: for each block the order in which its replicas are asked, and the
// replicas that a put writes.
//
// A block belongs to the first R nodes of its placement order. A reader may have to look further: a
// put goes to the next node in the order while one of the first is away, and a node that came back
// lacks what was put meanwhile. So the candidates of a block are the nodes in placement order until
// R of them are settled (up, and up for a while, as far as this client saw); in a quiet cluster
// these are the R replicas and nobody else is asked. Of blocks that are read much the next nodes
// have extra copies (extra_copies.h); these are candidates for reads, too.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kvstore/client/node_connection.h"
#include "kvstore/cluster/membership.h"
#include "kvstore/cluster/placement.h"

namespace oscarkv {

// The members at one moment with their connections. Immutable, thread-safe.
struct ClusterView {
  // `connections[i]` belongs to members->members[i]. `replicas`: 0 means two when there are that
  // many.
  ClusterView(std::shared_ptr<const MemberList> members,
              std::vector<std::shared_ptr<NodeConnection>> connections, int replicas,
              std::string zone);

  const std::shared_ptr<const MemberList> members;
  const std::vector<std::shared_ptr<NodeConnection>> connections;
  const Placement placement;
  const size_t replicas;
  const std::string zone;  // of the client
};
using ViewPtr = std::shared_ptr<const ClusterView>;

// The choices of one call. Looks at each node once, so that a call sees one state of it. Not
// thread-safe.
class ReplicaChooser {
 public:
  explicit ReplicaChooser(ViewPtr view);

  // Each result is valid until the next call, and empty only when there are no members.
  //
  // Candidates of a placement key, best first. For lookups the order is the
  // placement's, so that all clients' hits count at the same replica.
  const std::vector<uint32_t>& ForLookup(const BlockKey& placement);
  // The same for a read: replicas of the client's zone first, then by speed and load, what this
  // call plans included.
  const std::vector<uint32_t>& ForRead(const BlockKey& placement, uint32_t extra = 0);
  // This call will read so much from the first of `nodes`.
  void Plan(const std::vector<uint32_t>& nodes, uint64_t bytes) {
    if (!nodes.empty()) nodes_[nodes[0]].planned += bytes;
  }
  // Who gets a put: up to R nodes that can take it; when none can, one that is down.
  const std::vector<uint32_t>& ForWrite(const BlockKey& placement);
  // All that may have the block, also nodes that are down.
  const std::vector<uint32_t>& All(const BlockKey& placement, uint32_t extra = 0);

  const NodeCondition& condition(uint32_t node);
  NodeConnection* connection(uint32_t node) const { return view_->connections[node].get(); }
  const ViewPtr& view() const { return view_; }

 private:
  struct Node {
    bool looked = false;
    NodeCondition condition;
    uint64_t planned = 0;  // bytes that this call reads there
  };
  // 0: as good as any; more: only when there is no better one.
  int Misgivings(uint32_t node);
  void Candidates(const BlockKey& placement, uint32_t extra);
  const std::vector<uint32_t>& Readable(const BlockKey& placement, uint32_t extra);
  double Cost(uint32_t node);  // expected nanoseconds for what is under way and planned there

  const ViewPtr view_;
  const Time now_;
  std::vector<Node> nodes_;
  std::vector<uint32_t> order_, chosen_;
};

}  // namespace oscarkv
