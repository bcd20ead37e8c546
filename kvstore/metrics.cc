#include "kvstore/metrics.h"

#include "absl/strings/ascii.h"

namespace oscarkv {

std::string CodeLabel(const absl::Status& status) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(status.code()));
}

KvNodeMetrics::KvNodeMetrics(MetricRegistry* r)
    : bytes(
          r->AddGauge("oscarkv_kvstore_bytes", "Bytes of stored blocks", {"node", "kind", "tier"})),
      blocks(r->AddGauge("oscarkv_kvstore_blocks", "Stored blocks", {"node", "kind", "tier"})),
      capacity(r->AddGauge("oscarkv_kvstore_capacity_bytes", "Memory for blocks", {"node"})),
      used(r->AddGauge("oscarkv_kvstore_used_bytes",
                       "Memory taken by blocks, reservations and quarantine, rounding included",
                       {"node"})),
      pinned(r->AddGauge("oscarkv_kvstore_pinned_bytes", "Bytes of blocks that a reader has pinned",
                         {"node"})),
      reserved(r->AddGauge("oscarkv_kvstore_reserved_bytes",
                           "Memory reserved by puts that have not ended", {"node"})),
      quarantined(r->AddGauge(
          "oscarkv_kvstore_quarantined_bytes",
          "Memory of abandoned puts that rests because its writer may still write", {"node"})),
      extra_bytes(r->AddGauge("oscarkv_kvstore_extra_bytes",
                              "Bytes of extra copies that other nodes brought because these "
                              "blocks are read much",
                              {"node"})),
      pins(r->AddGauge("oscarkv_kvstore_pins", "Pins held by sessions", {"node"})),
      sessions(r->AddGauge("oscarkv_kvstore_sessions", "Open client sessions", {"node"})),
      tenant_used(r->AddGauge("oscarkv_kvstore_tenant_used_bytes", "Memory charged to a tenant",
                              {"node", "tenant"})),
      registered(r->AddGauge("oscarkv_kvstore_registered",
                             "1 while the node's record in etcd is kept alive; only with --etcd",
                             {"node"})),
      evictions(r->AddCounter("oscarkv_kvstore_evictions_total", "Blocks evicted", {"kind"})),
      lookups(r->AddCounter("oscarkv_kvstore_lookups_total", "Blocks looked up by prefix matches",
                            {"result"})),
      tokens(r->AddCounter("oscarkv_kvstore_lookup_tokens_total",
                           "Tokens of the blocks looked up by prefix matches", {"result"})),
      puts(r->AddCounter("oscarkv_kvstore_puts_total",
                         "Puts by outcome: committed, revoked, expired, refused", {"outcome"})),
      corrupt(r->AddCounter("oscarkv_kvstore_corrupt_blocks_total",
                            "Checksum failures: on put, of a stored block (when a reader or "
                            "another node complained), "
                            "of one that the scrubber read, or only of a reader's copy",
                            {"found"})),
      expired(r->AddCounter("oscarkv_kvstore_expired_total",
                            "What ended by its TTL: block, pin, session", {"what"})),
      stream_bytes(r->AddCounter("oscarkv_kvstore_stream_bytes_total",
                                 "Bytes of blocks that travelled over gRPC streams",
                                 {"direction"})),
      calls(r->AddCounter("oscarkv_kvstore_calls_total", "Calls of clients", {"call", "code"})),
      item_errors(r->AddCounter("oscarkv_kvstore_item_errors_total", "Items of batches that failed",
                                {"call", "code"})),
      call_seconds(r->AddHistogram("oscarkv_kvstore_call_seconds", "Time in the handler of a call",
                                   LatencySecondsBounds(), {"call"})) {
  for (int k = 0; k < kNumBlockKinds; ++k)
    evictions_of[k] = &evictions.With({BlockKindName(static_cast<BlockKind>(k + 1))});
  eviction_age =
      &r->AddHistogram("oscarkv_kvstore_eviction_age_seconds",
                       "Time since the last use of evicted blocks",
                       {0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10800, 36000, 86400})
           .GetHistogram();
  hit_blocks = &lookups.With({"hit"});
  miss_blocks = &lookups.With({"miss"});
  hit_tokens = &tokens.With({"hit"});
  miss_tokens = &tokens.With({"miss"});
  put_committed = &puts.With({"committed"});
  put_revoked = &puts.With({"revoked"});
  put_expired = &puts.With({"expired"});
  put_refused = &puts.With({"refused"});
  extra_reads = &r->AddCounter("oscarkv_kvstore_extra_reads_total",
                               "Reads that extra copies of much read blocks served")
                     .Get();
  // There from the start: Prometheus does not see the first increment of a series that appears with
  // it.
  for (const char* found : {"put", "stored", "scrub", "reader"}) corrupt.With({found});
}

KvTierMetrics::KvTierMetrics(MetricRegistry* r)
    : capacity(
          r->AddGauge("oscarkv_kvstore_ssd_capacity_bytes", "Disk space for blocks", {"node"})),
      used(r->AddGauge("oscarkv_kvstore_ssd_used_bytes",
                       "Disk space taken, that of erased blocks included until their part of the "
                       "disk is reused",
                       {"node"})),
      queued(r->AddGauge("oscarkv_kvstore_ssd_queued_bytes", "Blocks waiting to be written to disk",
                         {"node"})),
      unflushed(r->AddGauge("oscarkv_kvstore_ssd_unflushed_bytes",
                            "Written, but lost if the process died now", {"node"})),
      writable(r->AddGauge("oscarkv_kvstore_ssd_writable",
                           "0 while nothing is written after a failure of the disk", {"node"})),
      adopted(r->AddGauge("oscarkv_kvstore_ssd_adopted_blocks",
                          "Blocks found on disk when the node started", {"node"})),
      demotions(
          r->AddCounter("oscarkv_kvstore_ssd_demotions_total",
                        "Blocks that memory gave up and the disk has: written now, or present "
                        "from before",
                        {"outcome"})),
      drops(r->AddCounter("oscarkv_kvstore_ssd_drops_total",
                          "Blocks that memory gave up and the disk did not take: not_reused, "
                          "write_rate, queue_full, quota, too_large, disk_error, shutdown",
                          {"reason"})),
      promotions(r->AddCounter("oscarkv_kvstore_ssd_promotions_total",
                               "Blocks asked for while on disk: ok, late (not read in time), "
                               "no_room, gone, corrupt, disk_error",
                               {"outcome"})),
      moved(r->AddCounter("oscarkv_kvstore_ssd_bytes_total",
                          "Bytes of blocks written to (demoted) and read from (promoted) the disk",
                          {"direction"})),
      evictions(r->AddCounter("oscarkv_kvstore_ssd_evictions_total",
                              "Blocks of the oldest part of the disk when it was reused: dropped, "
                              "or rescued because they had been used",
                              {"outcome"})),
      corrupt(r->AddCounter("oscarkv_kvstore_ssd_corrupt_blocks_total",
                            "Damaged blocks found on disk at the start, by a read or by the "
                            "scrubber; they are forgotten",
                            {"found"})),
      errors(r->AddCounter("oscarkv_kvstore_ssd_errors_total", "Failed operations of the disk",
                           {"op", "code"})),
      op_seconds(r->AddHistogram("oscarkv_kvstore_ssd_op_seconds",
                                 "Time of a read, a write (into a buffer), a flush, and the time "
                                 "that a get waited for the disk",
                                 LatencySecondsBounds(), {"op"})),
      scrubbed(r->AddCounter("oscarkv_kvstore_ssd_scrubbed_bytes_total",
                             "Bytes that the scrubber read and checked")) {
  for (const char* outcome : {"written", "present"}) demotions.With({outcome});
  for (const char* reason :
       {"not_reused", "write_rate", "queue_full", "quota", "too_large", "disk_error", "shutdown"})
    drops.With({reason});
  for (const char* outcome : {"ok", "late", "no_room", "gone", "corrupt", "disk_error"})
    promotions.With({outcome});
  for (const char* outcome : {"dropped", "rescued"}) evictions.With({outcome});
  for (const char* found : {"start", "read", "scrub"}) corrupt.With({found});
  demoted_bytes = &moved.With({"demoted"});
  promoted_bytes = &moved.With({"promoted"});
  scrubbed_bytes = &scrubbed.Get();
  read_seconds = &op_seconds.HistogramWith({"read"});
  write_seconds = &op_seconds.HistogramWith({"write"});
  flush_seconds = &op_seconds.HistogramWith({"flush"});
  wait_seconds = &op_seconds.HistogramWith({"wait"});
}

KvRepairMetrics::KvRepairMetrics(MetricRegistry* r)
    : under_replicated(r->AddGauge(
          "oscarkv_kvstore_under_replicated_blocks",
          "Blocks of this node of which another node should have a copy and has none: waiting (it "
          "will be restored), no_node (too few nodes), no_room (that node is full of blocks that "
          "were used more recently)",
          {"node", "state"})),
      silent_peers(r->AddGauge("oscarkv_kvstore_silent_peers",
                               "Other nodes that do not answer this one", {"node"})),
      copies(r->AddCounter("oscarkv_kvstore_repair_copies_total",
                           "Copies of blocks brought to other nodes: restored, present (another "
                           "node was first), no_room, erased (by a client meanwhile), failed",
                           {"outcome"})),
      bytes(r->AddCounter("oscarkv_kvstore_repair_bytes_total",
                          "Bytes of blocks brought to other nodes")),
      scrubbed(r->AddCounter("oscarkv_kvstore_scrubbed_bytes_total",
                             "Bytes in memory that the scrubber read and checked")),
      hot_blocks(r->AddGauge("oscarkv_kvstore_hot_blocks",
                             "Blocks of this node that are read so much that it keeps extra "
                             "copies of them at other nodes",
                             {"node"})),
      hot_copies(r->AddCounter("oscarkv_kvstore_hot_copies_total",
                               "Extra copies brought to other nodes: made, renewed (it is there "
                               "still), no_room, erased (by a client meanwhile), failed",
                               {"outcome"})) {
  for (const char* outcome : {"made", "renewed", "no_room", "erased", "failed"})
    hot_copies.With({outcome});
  for (const char* outcome : {"restored", "present", "no_room", "erased", "failed"})
    copies.With({outcome});
  bytes.Get();
  scrubbed.Get();
}

KvClientMetrics::KvClientMetrics(MetricRegistry* r)
    : bytes(r->AddCounter("oscarkv_kvstore_client_bytes_total", "Bytes of blocks moved",
                          {"direction", "lane", "peer"})),
      blocks(r->AddCounter("oscarkv_kvstore_client_blocks_total", "Blocks moved",
                           {"direction", "lane", "peer"})),
      transfer_seconds(r->AddHistogram("oscarkv_kvstore_client_transfer_seconds",
                                       "Time of the transfers of one call with one node",
                                       LatencySecondsBounds(), {"direction", "lane", "peer"})),
      op_seconds(r->AddHistogram("oscarkv_kvstore_client_op_seconds",
                                 "Time of match, get, put_start and put_commit calls",
                                 LatencySecondsBounds(), {"op"})),
      errors(r->AddCounter("oscarkv_kvstore_client_errors_total", "Items that failed",
                           {"op", "code"})),
      matched_tokens(r->AddCounter("oscarkv_kvstore_client_match_tokens_total",
                                   "Tokens of the blocks asked for by Match", {"result"})),
      node_up(
          r->AddGauge("oscarkv_kvstore_client_node_up", "1 while connected to the node", {"peer"})),
      degraded(r->AddGauge(
          "oscarkv_kvstore_client_degraded",
          "1 while blocks of the node travel over gRPC although a transport was configured",
          {"peer"})),
      reconnects(r->AddCounter("oscarkv_kvstore_client_reconnects_total",
                               "Connections made after the first", {"peer"})),
      aborted_reads(r->AddCounter("oscarkv_kvstore_client_aborted_reads_total",
                                  "Reads whose pin was lost on the way: the bytes were dropped")),
      failovers(r->AddCounter("oscarkv_kvstore_client_failovers_total",
                              "Blocks that another replica served, by what the first one said",
                              {"op", "reason"})),
      hedges(r->AddCounter(
          "oscarkv_kvstore_client_hedges_total",
          "Lookups and reads taken to another replica because the node was slower than usual",
          {"peer"})),
      breaker_open(r->AddGauge("oscarkv_kvstore_client_breaker_open",
                               "1 while calls go to other replicas because several in a row failed",
                               {"peer"})),
      short_puts(r->AddCounter("oscarkv_kvstore_client_short_puts_total",
                               "Blocks acknowledged with fewer copies than replicas")),
      stale_nodes(r->AddCounter(
          "oscarkv_kvstore_client_stale_nodes_total",
          "Connections refused because another process than the registered one answered",
          {"peer"})),
      members(r->AddGauge("oscarkv_kvstore_client_members", "KV nodes that make up the store")),
      connected(r->AddGauge(
          "oscarkv_kvstore_client_membership_connected",
          "1 while the source of the list of nodes can be reached; else the last list is used")) {
  // There from the start, as above.
  for (const char* reason : {"not_found", "unavailable", "data_loss", "deadline_exceeded"}) {
    for (const char* op : {"match", "get"}) failovers.With({op, reason});
  }
  short_puts.Get();
}

}  // namespace oscarkv
