#include "kvstore/client/replicas.h"

#include <algorithm>

namespace oscarkv {
namespace {

size_t Replicas(const MemberList& members, int wanted) {
  if (wanted > 0) return static_cast<size_t>(wanted);
  const auto staying = std::count_if(members.members.begin(), members.members.end(),
                                     [](const Member& m) { return !m.draining; });
  return staying >= 2 ? 2 : 1;
}

}  // namespace

ClusterView::ClusterView(std::shared_ptr<const MemberList> members_in,
                         std::vector<std::shared_ptr<NodeConnection>> connections_in,
                         int replicas_in, std::string zone_in)
    : members(std::move(members_in)),
      connections(std::move(connections_in)),
      placement(members->members),
      replicas(Replicas(*members, replicas_in)),
      zone(std::move(zone_in)) {}

ReplicaChooser::ReplicaChooser(ViewPtr view)
    : view_(std::move(view)), now_(SteadyClock::Get()->Now()), nodes_(view_->connections.size()) {}

const NodeCondition& ReplicaChooser::condition(uint32_t n) {
  Node& node = nodes_[n];
  if (!node.looked) {
    node.condition = view_->connections[n]->condition(now_);
    node.looked = true;
  }
  return node.condition;
}

int ReplicaChooser::Misgivings(uint32_t n) {
  const NodeCondition& c = condition(n);
  if (c.link == nullptr) return 3;
  if (!c.trusted) return 2;
  return c.settled && !view_->members->members[n].draining ? 0 : 1;
}

// Fills order_. Bounded: with most nodes away the search ends at twice the replicas and one.
void ReplicaChooser::Candidates(const BlockKey& placement, uint32_t extra) {
  const size_t wanted = view_->replicas + extra;
  view_->placement.Order(placement, wanted + view_->replicas + 1, &order_);
  size_t settled = 0, n = 0;
  while (n < order_.size() && settled < wanted) settled += Misgivings(order_[n++]) == 0;
  order_.resize(n);
}

const std::vector<uint32_t>& ReplicaChooser::ForLookup(const BlockKey& placement) {
  return Readable(placement, 0);
}

const std::vector<uint32_t>& ReplicaChooser::Readable(const BlockKey& placement, uint32_t extra) {
  Candidates(placement, extra);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](uint32_t a, uint32_t b) { return Misgivings(a) < Misgivings(b); });
  // Who is down need not be asked when somebody is up.
  while (order_.size() > 1 && condition(order_.back()).link == nullptr) order_.pop_back();
  return order_;
}

double ReplicaChooser::Cost(uint32_t n) {
  // A node that was never read from is tried, and then known.
  constexpr double kUnknown = 1e-3;
  const NodeCondition& c = condition(n);
  return std::max(c.nanoseconds_per_byte, kUnknown) *
         static_cast<double>(c.waiting + nodes_[n].planned + 1);
}

const std::vector<uint32_t>& ReplicaChooser::ForRead(const BlockKey& placement, uint32_t extra) {
  Readable(placement, extra);
  const auto far = [&](uint32_t n) {
    return !view_->zone.empty() && view_->members->members[n].zone != view_->zone;
  };
  std::stable_sort(order_.begin(), order_.end(), [&](uint32_t a, uint32_t b) {
    if (Misgivings(a) != Misgivings(b)) return Misgivings(a) < Misgivings(b);
    if (far(a) != far(b)) return far(b);
    return Cost(a) < Cost(b);
  });
  return order_;
}

const std::vector<uint32_t>& ReplicaChooser::ForWrite(const BlockKey& placement) {
  // Enough to find R that are up while some are away. With one copy there is no way round: other
  // clients, who may see the owner, would not find it.
  const bool one = view_->replicas == 1;
  view_->placement.Order(placement, 2 * view_->replicas + 1, &order_);
  chosen_.clear();
  for (const int most : {1, 2}) {  // untrusted ones only when there are too few others
    for (uint32_t n : order_) {
      if (chosen_.size() == view_->replicas) return chosen_;
      if (view_->members->members[n].draining || (!one && Misgivings(n) > most)) continue;
      if (std::find(chosen_.begin(), chosen_.end(), n) == chosen_.end()) chosen_.push_back(n);
    }
  }
  if (chosen_.empty() && !order_.empty()) chosen_.push_back(order_[0]);
  return chosen_;
}

const std::vector<uint32_t>& ReplicaChooser::All(const BlockKey& placement, uint32_t extra) {
  Candidates(placement, extra);
  return order_;
}

}  // namespace oscarkv
