#include "kvstore/client/transfers.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_join.h"

namespace oscarkv {
namespace {

constexpr Duration kDrainPatience = std::chrono::milliseconds(50);
constexpr Duration kDrainPoll = std::chrono::microseconds(100);

}  // namespace

void LaneTotals::Add(const std::string& lane, uint64_t bytes, uint64_t blocks) {
  bytes_ += bytes;
  blocks_ += blocks;
  if (blocks == 0) return;
  const auto at = std::lower_bound(lanes_.begin(), lanes_.end(), lane);
  if (at == lanes_.end() || *at != lane) lanes_.insert(at, lane);
}

TransferTotals LaneTotals::totals() const {
  return {bytes_, blocks_, absl::StrJoin(lanes_, ",")};
}

void CountErrors(KvClientMetrics* metrics, absl::string_view op,
                 absl::Span<const absl::Status> statuses) {
  if (metrics == nullptr) return;
  for (const absl::Status& s : statuses) {
    if (s.ok() || absl::IsNotFound(s) || absl::IsAlreadyExists(s)) continue;
    metrics->errors.With({op, CodeLabel(s)}).Increment();
  }
}

void CountTransfer(KvClientMetrics* metrics, absl::string_view direction,
                   const NodeConnection& connection, const Link& link, uint64_t bytes,
                   uint64_t blocks, Duration time) {
  if (metrics == nullptr || blocks == 0) return;
  metrics->bytes.With({direction, link.lane, connection.node()}).Add(bytes);
  metrics->blocks.With({direction, link.lane, connection.node()}).Add(blocks);
  metrics->transfer_seconds.HistogramWith({direction, link.lane, connection.node()})
      .Observe(Seconds(time));
}

void DrainOrClose(absl::Span<const std::unique_ptr<TransferHandle>> handles,
                  NodeConnection* connection, const LinkPtr& link) {
  const auto at_rest = [&] {
    return std::all_of(handles.begin(), handles.end(),
                       [](const auto& h) { return h == nullptr || h->Drained(); });
  };
  if (at_rest()) return;
  for (const auto& handle : handles) {
    if (handle != nullptr) handle->Cancel();
  }
  const Time patience_ends = SteadyClock::Get()->Now() + kDrainPatience;
  while (!at_rest()) {
    if (SteadyClock::Get()->Now() >= patience_ends) {
      link->peer->Close();
      connection->Fail(link, absl::UnavailableError("closed: a transfer did not come to rest"));
      return;
    }
    std::this_thread::sleep_for(kDrainPoll);
  }
}

}  // namespace oscarkv
