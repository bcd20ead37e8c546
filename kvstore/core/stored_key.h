// A block's name inside a node: its key, and the tenant whose session put it. Equal keys of two
// tenants are two blocks. Keys of honest tenants differ anyway, since the tenant is part of the
// namespace they hash; this holds when a key leaks, too.
#pragma once

#include <cstdint>
#include <utility>

#include "kvstore/block_key.h"

namespace oscarkv {

struct StoredKey {
  uint32_t tenant = 0;  // Tenant::id
  BlockKey key;
  bool operator==(const StoredKey&) const = default;
  bool empty() const { return key.empty(); }  // no parent
  template <typename H>
  friend H AbslHashValue(H h, const StoredKey& k) {
    return H::combine(std::move(h), k.tenant, k.key);
  }
};

}  // namespace oscarkv
