#include "transport/metrics.h"

#include "absl/status/status.h"

namespace oscarkv {

TransportMetrics::TransportMetrics(MetricRegistry* registry) {
  if (registry == nullptr) {
    own_ = std::make_unique<MetricRegistry>();
    registry = own_.get();
  }
  MetricFamily& bytes = registry->AddCounter(
      "oscarkv_transport_bytes_total",
      "Bytes moved, by lane (shm, rdma, tcp) and direction: read and written by transfers of this "
      "node; served_read and "
      "served_written for peers over active messages (one-sided lanes do not see what peers do)",
      {"lane", "direction"});
  MetricFamily& transfers = registry->AddCounter(
      "oscarkv_transport_transfers_total", "Batches that ended, well or badly, by lane", {"lane"});
  MetricFamily& errors =
      registry->AddCounter("oscarkv_transport_errors_total",
                           "Batches that ended badly, by lane and status code", {"lane", "code"});
  MetricFamily& seconds = registry->AddHistogram(
      "oscarkv_transport_transfer_seconds",
      "Time from Post to the end of a successful batch, by lane", LatencySecondsBounds(), {"lane"});
  MetricFamily& peers =
      registry->AddGauge("oscarkv_transport_peers",
                         "Open connections to peers, by the lane that was selected", {"lane"});
  MetricFamily& malformed =
      registry->AddCounter("oscarkv_transport_malformed_messages_total",
                           "Messages of peers that were dropped as malformed, by lane", {"lane"});
  MetricFamily& refused = registry->AddCounter(
      "oscarkv_transport_refused_total",
      "What peers were refused over active messages: hello (a connection of nobody known, or whose "
      "session has ended), access (bytes that its session may not touch), by lane",
      {"lane", "what"});
  degraded_ = &registry
                   ->AddCounter("oscarkv_transport_degraded_connections_total",
                                "Connections that fell back to a slower lane than both sides have "
                                "(on one host: from shared memory to the network)")
                   .Get();
  for (LaneClass c : {LaneClass::kShm, LaneClass::kRdma, LaneClass::kTcp}) {
    const char* name = LaneClassName(c);
    Lane& lane = lanes_[static_cast<size_t>(c) - 1];
    lane.name = name;
    lane.read_bytes = &bytes.With({name, "read"});
    lane.written_bytes = &bytes.With({name, "written"});
    lane.served_read_bytes = &bytes.With({name, "served_read"});
    lane.served_written_bytes = &bytes.With({name, "served_written"});
    lane.transfers = &transfers.With({name});
    lane.peers = &peers.With({name});
    lane.malformed = &malformed.With({name});
    lane.refused_hello = &refused.With({name, "hello"});
    lane.refused_access = &refused.With({name, "access"});
    lane.seconds = &seconds.HistogramWith({name});
    lane.errors = &errors;
  }
}

void TransportMetrics::Lane::OnEnd(const Transfer& transfer, Time now) const {
  transfers->Increment();
  const absl::Status status = transfer.state->status();
  if (!status.ok()) {
    errors->With({name, absl::StatusCodeToString(status.code())}).Increment();
    return;
  }
  read_bytes->Add(static_cast<double>(transfer.read_bytes));
  written_bytes->Add(static_cast<double>(transfer.write_bytes));
  seconds->Observe(std::chrono::duration<double>(now - transfer.posted).count());
}

}  // namespace oscarkv
