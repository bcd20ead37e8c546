// What the tests of the tier share: blocks as the tier sees them, and blocking reads.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "kvstore/kv_stub.h"
#include "kvstore/tier/tier.h"
#include "support.h"

namespace oscarkv::kvtest {

inline TierKey TierKeyOf(uint64_t n, const std::string& tenant = "") {
  return {DigestOfTenant(tenant), Key(n)};
}

inline TierBlock TierBlockOf(uint64_t n, uint64_t size, const std::string& tenant = "") {
  TierBlock block;
  block.key = TierKeyOf(n, tenant);
  block.tenant = tenant;
  block.parent = Key(n + 1'000'000);
  block.size = size;
  block.slices = std::make_shared<const kv::SliceTable>(Table(Bytes(Key(n), size)));
  return block;
}

inline void Offer(Tier* tier, uint64_t n, uint64_t size, bool reused = true,
                  const std::string& tenant = "") {
  const std::string bytes = Bytes(Key(n), size);
  tier->Offer(TierBlockOf(n, size, tenant), reused,
              {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

// Waits for the answer. The bytes of a block, or the status.
inline absl::StatusOr<std::string> Fetch(Tier* tier, const TierKey& key, Time until = Time::max()) {
  CallBarrier barrier;
  barrier.Add();
  absl::StatusOr<std::string> out = absl::NotFoundError("not stored");
  const bool started = tier->Fetch(
      key, until, [&](const absl::StatusOr<TierBlock>& block, absl::Span<const uint8_t> bytes) {
        if (block.ok()) {
          out = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        } else {
          out = block.status();
        }
        barrier.Done();
      });
  if (started) barrier.Wait();
  return out;
}

}  // namespace oscarkv::kvtest
