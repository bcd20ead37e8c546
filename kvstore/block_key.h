// The names of blocks. A block of 64 tokens is named by a SHA-256 chain over (namespace, parent,
// token ids): equal names mean equal bytes. The namespace holds all else that decides the bytes
// (NamespaceFields).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/sha256.h"

namespace oscarkv {

struct BlockKey {
  std::array<uint8_t, 32> bytes{};
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes its own code for a zero pointer
  auto operator<=>(const BlockKey&) const = default;
  bool empty() const { return *this == BlockKey{}; }  // the parent of a chain's first block
  // The first eight bytes: uniform, for sharding and hash tables.
  uint64_t Prefix64() const {
    uint64_t v;
    std::memcpy(&v, bytes.data(), sizeof(v));
    return v;
  }
  std::string Hex() const { return ToHex(bytes.data(), bytes.size()); }
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& k) {
    return H::combine(std::move(h), k.Prefix64());
  }
};

struct NamespaceFields {
  Sha256Digest model_fingerprint{};
  Sha256Digest codec_fingerprint{};  // covers profile, transforms, clip ratios
  uint32_t format_version = 1;
  uint32_t page_tokens = 64;
  uint32_t sink_tokens = 64;
  uint32_t recent_tokens = 256;
  std::string prefill_history;  // "exact" or "canonical"
  std::string tenant;
};
Sha256Digest NamespaceDigest(const NamespaceFields& fields);

// Key of the block of `tokens` (64 of them) behind `parent`.
BlockKey ChainKey(const Sha256Digest& name_space, const BlockKey& parent,
                  absl::Span<const int32_t> tokens);
// Keys of all full blocks of `tokens`.
std::vector<BlockKey> ChainKeys(const Sha256Digest& name_space, absl::Span<const int32_t> tokens,
                                int block_tokens = 64);
// Key of the bf16 hand-over copy of the block `chain`.
BlockKey WindowKey(const BlockKey& chain);
// Key of the bf16 hand-over block of the tokens (fewer than 64) behind the last full block.
BlockKey PartialKey(const Sha256Digest& name_space, const BlockKey& parent,
                    absl::Span<const int32_t> tokens);

}  // namespace oscarkv
