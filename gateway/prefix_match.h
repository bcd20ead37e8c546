// How much of a prompt the store holds, for routing and for nothing else: the prefill worker looks
// for itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/types/span.h"
#include "common/clock.h"
#include "gateway/types.h"
#include "kvstore/client/client.h"

namespace oscarkv::gateway {

struct PrefixMatch {
  uint64_t cached_tokens = 0;
  uint64_t affinity = 0;  // of the prompt's first block; 0 without a full block
  bool failed = false;    // the store could not be asked: counts as a miss
};

// The namespace that a tenant's block keys start from. Workers say it for the default tenant; for
// others it is derived from the fields that they say, if these yield the default tenant's as well.
// Else unknown: such prompts are routed by load alone.
std::optional<Sha256Digest> NameSpaceOf(const WorkerInfo& model, const std::string& tenant);

// Blocks until `deadline` at most. store: may be null.
PrefixMatch MatchPrefix(KvClient* store, const WorkerInfo& model, const std::string& tenant,
                        absl::Span<const int32_t> prompt, Time deadline);

}  // namespace oscarkv::gateway
