// The tier below memory: where blocks go that eviction takes from the arena, and where a get finds
// them again. KvNode sees this interface only; SsdTier keeps it on a local disk.
//
// A tier is a cache of its own: it may refuse or lose any block at any time, and says so only in
// its counters. What it returns has been checked against the block's slice table.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/sha256.h"
#include "kvstore/api.h"
#include "kvstore/types.h"

namespace oscarkv {

// Tenants are numbered anew by each process; what outlives it names them by a hash of their name.
using TenantDigest = std::array<uint8_t, 16>;
inline TenantDigest DigestOfTenant(const std::string& name) {
  const Sha256Digest full = Sha256().Update(name.data(), name.size()).Finish();
  TenantDigest digest;
  std::copy_n(full.begin(), digest.size(), digest.begin());
  return digest;
}

struct TierKey {
  TenantDigest tenant{};
  BlockKey key;
  bool operator==(const TierKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const TierKey& k) {
    return H::combine(std::move(h), k.tenant, k.key);
  }
};

// All of a block but its bytes.
struct TierBlock {
  TierKey key;
  std::string tenant;  // its name
  BlockKey parent;
  BlockKey placement;  // empty: not known
  BlockKind kind = BlockKind::kPage;
  uint64_t size = 0;
  std::shared_ptr<const kv::SliceTable> slices;
};

// Thread-safe.
class Tier {
 public:
  virtual ~Tier() = default;

  // Memory gives this block up. The tier decides whether it wants it, copies `bytes` if so and
  // writes them later; never waits for the disk. `reused`: a prefix match found the block.
  virtual void Offer(const TierBlock& block, bool reused, absl::Span<const uint8_t> bytes) = 0;

  virtual bool Contains(const TierKey& key) const = 0;
  // The same, and counts as a use.
  virtual bool Touch(const TierKey& key) = 0;

  // Reads a block. `done` runs exactly once on a thread of the tier: with the block and its bytes,
  // which stay until `done` returns; kNotFound; kDataLoss (the copy is gone now); kUnavailable (the
  // disk); kDeadlineExceeded: nobody came to it until then; kCancelled: the tier shut down. False:
  // not stored, `done` will not run.
  using FetchDone =
      std::function<void(const absl::StatusOr<TierBlock>& block, absl::Span<const uint8_t> bytes)>;
  virtual bool Fetch(const TierKey& key, Time until, FetchDone done) = 0;

  virtual void Erase(const TierKey& key) = 0;
  virtual TierStats stats() const = 0;
  // Writes what is queued as far as `until` allows, ends open fetches, stops the threads. Nothing
  // else may be called after it but the destructor and stats().
  virtual void Shutdown(Time until) = 0;
};

}  // namespace oscarkv
