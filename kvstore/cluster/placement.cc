#include "kvstore/cluster/placement.h"

namespace oscarkv {
namespace {

// Finaliser of MurmurHash3: every input bit changes every output bit with probability one half.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

}  // namespace

Placement::Placement(absl::Span<const std::string> nodes) {
  for (const std::string& node : nodes) {
    const Sha256Digest digest = Sha256().UpdateField(node).Finish();
    uint64_t seed = 0;
    for (int i = 0; i < 8; ++i) seed = seed << 8 | digest[i];
    seeds_.push_back(seed);
  }
}

size_t Placement::OwnerOf(const BlockKey& placement) const {
  uint64_t key = 0;
  for (int i = 0; i < 8; ++i) key = key << 8 | placement.bytes[i];
  size_t best = 0;
  uint64_t best_weight = 0;
  for (size_t i = 0; i < seeds_.size(); ++i) {
    const uint64_t weight = Mix(key ^ Mix(seeds_[i]));
    if (i > 0 && weight <= best_weight) continue;
    best = i;
    best_weight = weight;
  }
  return best;
}

}  // namespace oscarkv
