#include "kvstore/cluster/placement.h"

#include <cmath>
#include <map>

namespace oscarkv {
namespace {

// Finaliser of MurmurHash3: every input bit changes every output bit with probability one half.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

// A node's claim to a key: the larger, the better. With equal weights the hash alone decides, in
// integers. Else u is uniform in (0, 1) and w / -ln u ranks: a node wins in proportion to its
// weight.
struct Claim {
  double score;
  uint64_t hash;
  bool operator>(const Claim& o) const {
    return score != o.score ? score > o.score : hash > o.hash;
  }
};

}  // namespace

Placement::Placement(absl::Span<const Member> members) {
  std::map<std::string, uint32_t> zones;
  for (const Member& member : members) {
    const Sha256Digest digest = Sha256().UpdateField(member.endpoint).Finish();
    uint64_t seed = 0;
    for (int i = 0; i < 8; ++i) seed = seed << 8 | digest[i];
    const uint32_t zone =
        member.zone.empty() ? num_zones_ : zones.try_emplace(member.zone, num_zones_).first->second;
    if (zone == num_zones_) ++num_zones_;
    nodes_.push_back({seed, zone, member.weight});
    equal_weights_ &= member.weight == members[0].weight;
  }
}

void Placement::Order(const BlockKey& placement, size_t count, std::vector<uint32_t>* order) const {
  uint64_t key = 0;
  for (int i = 0; i < 8; ++i) key = key << 8 | placement.bytes[i];
  order->clear();
  std::vector<Claim> claims(nodes_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const uint64_t hash = Mix(key ^ Mix(nodes_[i].seed));
    const double u = (static_cast<double>(hash >> 11) + 0.5) / (uint64_t{1} << 53);
    claims[i] = {equal_weights_ ? 0 : nodes_[i].weight / -std::log(u), hash};
  }
  std::vector<uint32_t> taken_of_zone(num_zones_);
  std::vector<bool> taken(nodes_.size());
  while (order->size() < count && order->size() < nodes_.size()) {
    size_t best = nodes_.size();
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (taken[i]) continue;
      if (best < nodes_.size()) {
        const uint32_t mine = taken_of_zone[nodes_[i].zone],
                       theirs = taken_of_zone[nodes_[best].zone];
        if (mine > theirs || (mine == theirs && !(claims[i] > claims[best]))) continue;
      }
      best = i;
    }
    taken[best] = true;
    ++taken_of_zone[nodes_[best].zone];
    order->push_back(static_cast<uint32_t>(best));
  }
}

size_t Placement::OwnerOf(const BlockKey& placement) const {
  std::vector<uint32_t> order;
  Order(placement, 1, &order);
  return order[0];
}

}  // namespace oscarkv
