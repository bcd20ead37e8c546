#include "gateway/usage.h"

#include <algorithm>

namespace oscarkv::gateway {

void AddTransfers(const Transfers& put, const Transfers& get, Usage* usage) {
  usage->bytes_put += put.bytes;
  usage->bytes_got += get.bytes;
  for (const Transfers* transfers : {&get, &put}) {
    for (const std::string& lane : transfers->lanes) {
      auto& lanes = usage->lanes;
      if (std::find(lanes.begin(), lanes.end(), lane) == lanes.end()) lanes.push_back(lane);
    }
  }
}

void EstimateKvBytes(const WorkerInfo& model, uint64_t tokens, Usage* usage) {
  constexpr uint64_t kSink = 64, kRecent = 256, kBlock = 64;
  const uint64_t behind_sink = tokens - std::min(tokens, kSink);
  // The ring holds kRecent tokens and up to one block more, then gives up its oldest block.
  const uint64_t paged = behind_sink < kRecent ? 0 : (behind_sink - kRecent) / kBlock * kBlock;
  usage->kv_bytes_bf16 = tokens * model.kv_bytes_per_token_bf16;
  usage->kv_bytes_stored =
      (tokens - paged) * model.kv_bytes_per_token_bf16 + paged * model.kv_bytes_per_token_stored;
}

}  // namespace oscarkv::gateway
