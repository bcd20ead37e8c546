#include "kvstore/repair/plan.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "kvstore/core/digest.h"

namespace oscarkv {

RepairView::RepairView(std::vector<Member> members, std::vector<Presence> presence, size_t replicas)
    : members_(std::move(members)),
      presence_(std::move(presence)),
      replicas_(replicas),
      placement_(members_) {
  gone_ = std::count(presence_.begin(), presence_.end(), Presence::kGone);
}

uint32_t RepairView::IndexOf(const std::string& endpoint) const {
  uint32_t i = 0;
  while (i < members_.size() && members_[i].endpoint != endpoint) ++i;
  return i;
}

void RepairView::First(size_t count, const BlockKey& placement,
                       std::vector<uint32_t>* nodes) const {
  placement_.Order(placement, count + gone_, nodes);
  std::erase_if(*nodes, [&](uint32_t n) { return presence_[n] == Presence::kGone; });
  if (nodes->size() > count) nodes->resize(count);
}

Survey SurveyBlocks(const RepairView& view, uint32_t self,
                    absl::Span<const BlockIndex::Listed> blocks) {
  Survey survey;
  survey.peers.resize(view.members().size());
  for (uint32_t n = 0; n < survey.peers.size(); ++n) {
    if (n == self) continue;
    survey.peers[n].digests.assign(kv::kDigestBuckets, 0);
    survey.peers[n].buckets.resize(kv::kDigestBuckets);
  }
  survey.no_node.resize(blocks.size());
  survey.silent_owner.resize(blocks.size());
  absl::flat_hash_map<BlockKey, std::vector<uint32_t>> known;  // up to 16 blocks share a placement
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    const BlockIndex::Listed& block = blocks[i];
    const auto [it, is_new] = known.try_emplace(block.placement);
    if (is_new) view.Owners(block.placement, &it->second);
    const std::vector<uint32_t>& owners = it->second;
    const bool ours = std::find(owners.begin(), owners.end(), self) != owners.end();
    survey.no_node[i] = owners.size() < view.replicas();
    for (const uint32_t n : owners) {
      if (n == self) continue;
      Survey::OfPeer& peer = survey.peers[n];
      if (view.presence(n) == Presence::kSilent) survey.silent_owner[i] = true;
      if (ours) {
        AddToDigest(block.tenant->digest, block.key.key, &peer.digests);
        peer.buckets[DigestBucket(block.key.key)].push_back(i);
      } else {
        peer.guests.push_back(i);
      }
    }
  }
  return survey;
}

size_t ReplicasOf(absl::Span<const Member> members, int wanted) {
  if (wanted > 0) return static_cast<size_t>(wanted);
  const auto staying =
      std::count_if(members.begin(), members.end(), [](const Member& m) { return !m.draining; });
  return staying >= 2 ? 2 : 1;
}

}  // namespace oscarkv
