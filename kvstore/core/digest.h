// Digests by which two nodes find out whether they have the same blocks: per bucket of keys the sum
// of a hash of each, which does not depend on an order. Part of the wire contract
// (CompareDigestsRequest).
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kvstore/api.h"
#include "kvstore/block_key.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

inline uint64_t LittleEndian64(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

inline uint32_t DigestBucket(const BlockKey& key) {
  return (key.bytes[0] | key.bytes[1] << 8) % kv::kDigestBuckets;
}

// Keys are SHA-256, so the sum of eight of their bytes is as good as a hash; the tenant only has to
// tell equal keys of two tenants apart.
inline void AddToDigest(const TenantDigest& tenant, const BlockKey& key,
                        std::vector<uint64_t>* digests) {
  uint64_t x = LittleEndian64(key.bytes.data() + 8) ^ LittleEndian64(tenant.data());
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  (*digests)[DigestBucket(key)] += x ^ (x >> 29);
}

}  // namespace oscarkv
