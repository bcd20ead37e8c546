// Reading blocks: pin, read straight into the caller's pieces, verify every slice, release. One
// attempt at the nodes given; which ones, and what to do after a failure, is KvClientImpl's
// business.
#pragma once

#include <vector>

#include "kvstore/client/kv_client.h"
#include "kvstore/client/transfers.h"

namespace oscarkv {

struct GetLimits {
  Duration pin_ttl;
  Time deadline;
  LatencyWindow* pin_times;  // of GetStart calls: decides when a node that may be left is left
  ExtraCopies* extra;        // learns what the nodes say
};

// Serves the items of all groups at the same time and sets (*statuses)[item] for each of them. On
// return nothing writes to the pieces any more.
void GetAll(absl::Span<const GetRequest> requests, absl::Span<const NodeGroup> groups,
            const GetLimits& limits, KvClientMetrics* metrics, std::vector<absl::Status>* statuses,
            LaneTotals* moved);

}  // namespace oscarkv
