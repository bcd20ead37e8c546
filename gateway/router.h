// Which workers serve a request: pure functions of what is known of the cluster, so that every
// decision can be tested.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv::gateway {

struct WorkerLoad {
  size_t index = 0;  // in the WorkerSet's list of its role
  std::string endpoint;
  uint32_t in_flight = 0;  // this gateway's requests on it
  uint64_t in_flight_tokens =
      0;  // prefill: their prompt tokens that are not in the store. attention: all their tokens
  uint32_t foreign = 0;     // requests of other gateways on it, as of its last GetInfo
  uint64_t pool_pages = 0;  // attention
  uint64_t pool_pages_free = 0;
};

// Workers that may be used now.
struct ClusterSnapshot {
  std::vector<WorkerLoad> prefill;
  std::vector<WorkerLoad> attention;
  uint64_t sequence = 0;  // grows by one per snapshot
};

struct RouteRequest {
  uint64_t prompt_tokens = 0;
  uint64_t cached_tokens = 0;  // of the prompt, found in the store
  uint64_t max_tokens = 0;     // of the answer
  uint64_t affinity = 0;  // hash of the prompt's first block; 0: the prompt is shorter than a block
};

// Picks return WorkerLoad::index; kUnavailable when the snapshot has no worker of the role.
// Stateless: thread-safe.
class Router {
 public:
  virtual ~Router() = default;
  virtual absl::StatusOr<size_t> PickPrefill(const ClusterSnapshot& cluster,
                                             const RouteRequest& request) const = 0;
  virtual absl::StatusOr<size_t> PickAttention(const ClusterSnapshot& cluster,
                                               const RouteRequest& request) const = 0;
};

// The least work ahead of the request, in tokens that must be computed; where that is equal, the
// worker that rendezvous hashing gives the prompt's first block, so that an idle cluster sends
// equal prefixes to the same place (the store is shared: any worker can serve any prefix, only
// pages and code that are warm differ). Attention workers whose page pool has no room for the
// request come last.
class PrefixAwareRouter final : public Router {
 public:
  absl::StatusOr<size_t> PickPrefill(const ClusterSnapshot& cluster,
                                     const RouteRequest& request) const override;
  absl::StatusOr<size_t> PickAttention(const ClusterSnapshot& cluster,
                                       const RouteRequest& request) const override;
};

// In turn, by the snapshot's sequence number.
class RoundRobinRouter final : public Router {
 public:
  absl::StatusOr<size_t> PickPrefill(const ClusterSnapshot& cluster,
                                     const RouteRequest& request) const override;
  absl::StatusOr<size_t> PickAttention(const ClusterSnapshot& cluster,
                                       const RouteRequest& request) const override;
};

// "prefix-aware" or "round-robin".
absl::StatusOr<std::unique_ptr<Router>> MakeRouter(absl::string_view name);

}  // namespace oscarkv::gateway
