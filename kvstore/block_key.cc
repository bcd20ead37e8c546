#include "kvstore/block_key.h"

#include <algorithm>

namespace oscarkv {
namespace {

BlockKey Hash(const char* domain, const Sha256Digest& name_space, const BlockKey& parent,
              absl::Span<const int32_t> tokens) {
  Sha256 sha;
  sha.UpdateField(domain)
      .Update(name_space.data(), name_space.size())
      .Update(parent.bytes.data(), parent.bytes.size());
  sha.UpdateU64(tokens.size()).Update(tokens.data(), tokens.size() * sizeof(int32_t));
  return {sha.Finish()};
}

}  // namespace

Sha256Digest NamespaceDigest(const NamespaceFields& f) {
  Sha256 sha;
  sha.UpdateField("oscarkv.namespace.v1");
  sha.Update(f.model_fingerprint.data(), f.model_fingerprint.size());
  sha.Update(f.codec_fingerprint.data(), f.codec_fingerprint.size());
  sha.UpdateU64(f.format_version)
      .UpdateU64(f.page_tokens)
      .UpdateU64(f.sink_tokens)
      .UpdateU64(f.recent_tokens);
  sha.UpdateField(f.prefill_history).UpdateField(f.tenant);
  return sha.Finish();
}

BlockKey ChainKey(const Sha256Digest& name_space, const BlockKey& parent,
                  absl::Span<const int32_t> tokens) {
  return Hash("block", name_space, parent, tokens);
}

std::vector<BlockKey> ChainKeys(const Sha256Digest& name_space, absl::Span<const int32_t> tokens,
                                int block_tokens) {
  std::vector<BlockKey> keys;
  keys.reserve(tokens.size() / block_tokens);
  BlockKey parent;
  for (size_t i = 0; i + block_tokens <= tokens.size(); i += block_tokens) {
    parent = ChainKey(name_space, parent, tokens.subspan(i, block_tokens));
    keys.push_back(parent);
  }
  return keys;
}

BlockKey WindowKey(const BlockKey& chain) {
  return Hash("window", Sha256Digest{}, chain, {});
}

BlockKey PartialKey(const Sha256Digest& name_space, const BlockKey& parent,
                    absl::Span<const int32_t> tokens) {
  return Hash("partial", name_space, parent, tokens);
}

}  // namespace oscarkv
