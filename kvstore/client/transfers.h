// What gets and puts share: accounting by lane, errors, and the rule that memory is given back only
// when nothing writes to it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "kvstore/client/client.h"
#include "kvstore/client/node_connection.h"
#include "kvstore/metrics.h"
#include "transport/transport.h"

namespace oscarkv {

class LaneTotals {
 public:
  void Add(const std::string& lane, uint64_t bytes, uint64_t blocks);
  TransferTotals totals() const;

 private:
  uint64_t bytes_ = 0, blocks_ = 0;
  std::vector<std::string> lanes_;  // sorted, distinct
};

// Items that are neither OK nor an ordinary outcome of a cache (not found, stored before).
// `metrics` may be null.
void CountErrors(KvClientMetrics* metrics, absl::string_view op,
                 absl::Span<const absl::Status> statuses);
// `metrics` may be null.
void CountTransfer(KvClientMetrics* metrics, absl::string_view direction,
                   const NodeConnection& connection, const Link& link, uint64_t bytes,
                   uint64_t blocks, Duration time);

// Returns when no transfer of these handles touches local memory any more. A one-sided operation
// cannot be taken back: handles that do not come to rest soon cost the connection, which is closed
// by force.
void DrainOrClose(absl::Span<const std::unique_ptr<TransferHandle>> handles,
                  NodeConnection* connection, const LinkPtr& link);

}  // namespace oscarkv
