// Reading blocks: pin, read straight into the caller's pieces, verify every slice, release. One
// attempt; the caller tries lost pins again.
#pragma once

#include <vector>

#include "kvstore/client/client.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/client/transfers.h"

namespace oscarkv {

// Serves the items of all groups at the same time and sets (*statuses)[item] for each of them. On
// return nothing writes to the pieces any more.
void GetAll(absl::Span<const GetRequest> requests, absl::Span<const NodeGroup> groups,
            Duration pin_ttl, Time deadline, KvClientMetrics* metrics,
            std::vector<absl::Status>* statuses, LaneTotals* moved);

}  // namespace oscarkv
