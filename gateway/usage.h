// What an answer cost, for its last message.
#pragma once

#include "absl/status/status.h"
#include "gateway/types.h"

namespace oscarkv::gateway {

void AddTransfers(const Transfers& put, const Transfers& get, Usage* usage);

// The KV bytes of a sequence of `tokens` whose worker did not say them (its stream was cut at a
// stop string): sink and window in bf16, the blocks that left the window as stored. Window
// arithmetic: docs/block_format.md.
void EstimateKvBytes(const WorkerInfo& model, uint64_t tokens, Usage* usage);

}  // namespace oscarkv::gateway
