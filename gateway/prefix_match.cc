#include "gateway/prefix_match.h"

#include <algorithm>
#include <vector>

#include "common/log.h"
#include "kvstore/block_key.h"

namespace oscarkv::gateway {
namespace {

constexpr int kBlockTokens = 64;

std::optional<Sha256Digest> ToDigest(const std::string& bytes) {
  Sha256Digest digest;
  if (bytes.size() != digest.size()) return std::nullopt;
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return digest;
}

}  // namespace

std::optional<Sha256Digest> NameSpaceOf(const WorkerInfo& model, const std::string& tenant) {
  const std::optional<Sha256Digest> standard = ToDigest(model.name_space);
  if (tenant.empty() || !standard) return standard;
  const auto model_fingerprint = ToDigest(model.model_fingerprint);
  const auto codec_fingerprint = ToDigest(model.codec_fingerprint);
  if (!model_fingerprint || !codec_fingerprint) return std::nullopt;
  NamespaceFields fields;
  fields.model_fingerprint = *model_fingerprint;
  fields.codec_fingerprint = *codec_fingerprint;
  fields.prefill_history = model.prefill_history;
  if (NamespaceDigest(fields) != *standard) return std::nullopt;
  fields.tenant = tenant;
  return NamespaceDigest(fields);
}

PrefixMatch MatchPrefix(KvClient* store, const WorkerInfo& model, const std::string& tenant,
                        absl::Span<const int32_t> prompt, Time deadline) {
  PrefixMatch result;
  const std::optional<Sha256Digest> name_space = NameSpaceOf(model, tenant);
  if (!name_space) return result;
  const std::vector<BlockKey> chain = ChainKeys(*name_space, prompt, kBlockTokens);
  if (chain.empty()) return result;
  result.affinity = chain.front().Prefix64();
  if (store == nullptr) return result;
  const absl::StatusOr<size_t> blocks = store->Match(chain, deadline);
  if (blocks.ok()) {
    result.cached_tokens = std::min(*blocks, chain.size()) * kBlockTokens;
  } else {
    result.failed = true;
    // Once per request while the store is away: the metric and the store client's own log tell it.
    Log(LogLevel::kDebug, "prefix lookup failed", {{"error", blocks.status().ToString()}});
  }
  return result;
}

}  // namespace oscarkv::gateway
