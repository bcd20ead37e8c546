#include "gateway/router.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace oscarkv::gateway {
namespace {

constexpr uint64_t kPageTokens = 64;

// The index of the worker with the smallest rank.
template <typename Rank>
absl::StatusOr<size_t> Least(const std::vector<WorkerLoad>& workers, const char* role, Rank rank) {
  if (workers.empty()) {
    return absl::UnavailableError(absl::StrCat("no ", role, " worker is available"));
  }
  return std::min_element(workers.begin(), workers.end(),
                          [&](const auto& a, const auto& b) { return rank(a) < rank(b); })
      ->index;
}

// Rendezvous weight of (prefix, endpoint): FNV-1a, then murmur3's finaliser. Not std::hash: the
// choice must be the same in every gateway and every build.
uint64_t Weight(uint64_t affinity, absl::string_view endpoint) {
  uint64_t h = 0xcbf29ce484222325u ^ affinity;
  for (char c : endpoint) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
  h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53u;
  return h ^ (h >> 33);
}

// Foreign requests are taken to be as large as this one: nothing else is known of them.
uint64_t PrefillCost(const WorkerLoad& w, const RouteRequest& r) {
  const uint64_t own = r.prompt_tokens - std::min(r.cached_tokens, r.prompt_tokens);
  return w.in_flight_tokens + w.foreign * std::max<uint64_t>(own, 1);
}

// Decode steps cost by the sequence first; its length matters through the page pool.
uint64_t AttentionCost(const WorkerLoad& w) {
  return w.in_flight + w.foreign;
}

bool PoolHasRoom(const WorkerLoad& w, const RouteRequest& r) {
  const uint64_t pages = (r.prompt_tokens + r.max_tokens + kPageTokens - 1) / kPageTokens;
  return w.pool_pages == 0 || w.pool_pages_free >= pages;  // 0: the worker has not said
}

// Rank 0 for the worker whose turn it is.
auto Turn(const std::vector<WorkerLoad>& workers, uint64_t sequence) {
  return [&workers, sequence](const WorkerLoad& w) {
    return &w == &workers[sequence % workers.size()] ? 0 : 1;
  };
}

}  // namespace

absl::StatusOr<size_t> PrefixAwareRouter::PickPrefill(const ClusterSnapshot& cluster,
                                                      const RouteRequest& r) const {
  return Least(cluster.prefill, "prefill", [&](const WorkerLoad& w) {
    return std::make_tuple(PrefillCost(w, r), ~Weight(r.affinity, w.endpoint), w.index);
  });
}

absl::StatusOr<size_t> PrefixAwareRouter::PickAttention(const ClusterSnapshot& cluster,
                                                        const RouteRequest& r) const {
  return Least(cluster.attention, "attention", [&](const WorkerLoad& w) {
    return std::make_tuple(!PoolHasRoom(w, r), AttentionCost(w), ~Weight(r.affinity, w.endpoint),
                           w.index);
  });
}

absl::StatusOr<size_t> RoundRobinRouter::PickPrefill(const ClusterSnapshot& cluster,
                                                     const RouteRequest& request) const {
  return Least(cluster.prefill, "prefill", Turn(cluster.prefill, cluster.sequence));
}

absl::StatusOr<size_t> RoundRobinRouter::PickAttention(const ClusterSnapshot& cluster,
                                                       const RouteRequest& request) const {
  return Least(cluster.attention, "attention", Turn(cluster.attention, cluster.sequence));
}

absl::StatusOr<std::unique_ptr<Router>> MakeRouter(absl::string_view name) {
  if (name == "prefix-aware") return std::make_unique<PrefixAwareRouter>();
  if (name == "round-robin") return std::make_unique<RoundRobinRouter>();
  return absl::InvalidArgumentError(
      absl::StrCat("router \"", name, "\": allowed are prefix-aware, round-robin"));
}

}  // namespace oscarkv::gateway
