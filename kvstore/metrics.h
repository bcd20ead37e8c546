// The metrics of the store: of a node and of its clients. The only place for their names.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "kvstore/types.h"

namespace oscarkv {

inline double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}
std::string CodeLabel(const absl::Status& status);  // "ok", "not_found", ...

struct KvNodeMetrics {
  explicit KvNodeMetrics(MetricRegistry* registry);

  void OnEviction(BlockKind kind, Duration unused_for) {
    evictions_of[static_cast<int>(kind) - 1]->Increment();
    eviction_age->Observe(Seconds(unused_for));
  }

  // Set about every 100 ms by KvNode::Tick. `node` is the endpoint: several nodes may share a
  // process.
  MetricFamily& bytes;        // {node, kind, tier}
  MetricFamily& blocks;       // {node, kind, tier}
  MetricFamily& capacity;     // {node}
  MetricFamily& used;         // {node}
  MetricFamily& pinned;       // {node}
  MetricFamily& reserved;     // {node}
  MetricFamily& quarantined;  // {node}
  MetricFamily& extra_bytes;  // {node}
  MetricFamily& pins;         // {node}
  MetricFamily& sessions;     // {node}
  MetricFamily& tenant_used;  // {node, tenant}
  MetricFamily& registered;   // {node}

  MetricFamily& evictions;     // {kind}
  MetricFamily& lookups;       // {result}, blocks
  MetricFamily& tokens;        // {result}
  MetricFamily& puts;          // {outcome}
  MetricFamily& corrupt;       // {found}
  MetricFamily& expired;       // {what}
  MetricFamily& stream_bytes;  // {direction}
  MetricFamily& calls;         // {call, code}
  MetricFamily& item_errors;   // {call, code}
  MetricFamily& call_seconds;  // {call}

  // Series of hot paths.
  Metric* evictions_of[kNumBlockKinds];
  Histogram* eviction_age;
  Metric *hit_blocks, *miss_blocks, *hit_tokens, *miss_tokens;
  Metric *put_committed, *put_revoked, *put_expired, *put_refused;
  Metric* extra_reads;
};

// Of the tier on disk; kvstore/tier.
struct KvTierMetrics {
  explicit KvTierMetrics(MetricRegistry* registry);

  // Set by KvNode::Tick. What the tier holds is in KvNodeMetrics::bytes and blocks, tier "ssd".
  MetricFamily& capacity;   // {node}
  MetricFamily& used;       // {node}
  MetricFamily& queued;     // {node}
  MetricFamily& unflushed;  // {node}
  MetricFamily& writable;   // {node}
  MetricFamily& adopted;    // {node}

  MetricFamily& demotions;   // {outcome}
  MetricFamily& drops;       // {reason}
  MetricFamily& promotions;  // {outcome}: counted by KvNode
  MetricFamily& moved;       // {direction}, bytes
  MetricFamily& evictions;   // {outcome}
  MetricFamily& corrupt;     // {found}
  MetricFamily& errors;      // {op, code}
  MetricFamily& op_seconds;  // {op}
  MetricFamily& scrubbed;    // {}, bytes

  // Series of hot paths.
  Metric *demoted_bytes, *promoted_bytes, *scrubbed_bytes;
  Histogram *read_seconds, *write_seconds, *flush_seconds, *wait_seconds;
};

// Of the copies at other nodes; kvstore/repair.
struct KvRepairMetrics {
  explicit KvRepairMetrics(MetricRegistry* registry);

  MetricFamily& under_replicated;  // {node, state}: blocks
  MetricFamily& silent_peers;      // {node}
  MetricFamily& copies;            // {outcome}: blocks
  MetricFamily& bytes;             // {}
  MetricFamily& scrubbed;          // {}, bytes
  MetricFamily& hot_blocks;        // {node}
  MetricFamily& hot_copies;        // {outcome}: blocks
};

struct KvClientMetrics {
  explicit KvClientMetrics(MetricRegistry* registry);

  MetricFamily& bytes;   // {direction, lane, peer}
  MetricFamily& blocks;  // {direction, lane, peer}
  MetricFamily&
      transfer_seconds;      // {direction, lane, peer}: of the part of a call that one node serves
  MetricFamily& op_seconds;  // {op}
  MetricFamily& errors;      // {op, code}: items
  MetricFamily& matched_tokens;  // {result}
  MetricFamily& node_up;         // {peer}
  MetricFamily& degraded;        // {peer}
  MetricFamily& reconnects;      // {peer}
  MetricFamily& aborted_reads;   // {}
  MetricFamily& failovers;       // {op, reason}: blocks
  MetricFamily& hedges;          // {peer}
  MetricFamily& breaker_open;    // {peer}
  MetricFamily& short_puts;      // {}: blocks
  MetricFamily& stale_nodes;     // {peer}
  MetricFamily& members;         // {}
  MetricFamily& connected;       // {}
};

}  // namespace oscarkv
