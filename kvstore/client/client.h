// The store as its users see it: match a chain, get blocks into registered memory, put blocks layer
// by layer. Spreads chains over the nodes, keeps sessions alive, pins what it reads, verifies every
// checksum. Installed as part of the client library.
//
// Thread-safe. Every call has a deadline and blocks at most that long.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "kvstore/etcd_access.h"
#include "kvstore/types.h"

namespace oscarkv {

class MetricRegistry;
class Transport;
namespace rpc {
class ClientSecurity;
}

struct KvClientOptions {
  // Every kvstore node, "host:port[@zone][/weight]" of its gRPC endpoint; the order does not
  // matter. All clients of a store must name the same nodes, zones and weights.
  std::vector<std::string> nodes;
  // Instead of `nodes`: etcd endpoints, "host:port", where the nodes register themselves, and where
  // in it. While etcd is away the last list is used.
  std::vector<std::string> etcd;
  std::string etcd_prefix = "/oscarkv/";
  EtcdAccess etcd_access;
  // Nodes that hold each block; 0: two when there are that many. Clients may differ in it.
  int replicas = 0;
  // Copies that must be committed before a put is acknowledged. A put goes to all replicas and
  // waits for all that answer in time, whatever this says; fewer copies than this are an error.
  int write_quorum = 1;
  std::string zone;  // of this client: replicas in the same zone are read first; "": none
  std::string name = "client";  // shown in the nodes' logs and status
  // Whose quota pays and whose blocks are seen: those that clients of the same tenant put. "" is
  // the default tenant.
  std::string tenant;
  Transport* transport = nullptr;     // data path; null: streaming gRPC. Outlives the client
  MetricRegistry* metrics = nullptr;  // may be null
  Duration connect_timeout = std::chrono::seconds(5);
  Duration pin_ttl = std::chrono::seconds(30);  // renewed while a get runs
  // TLS and token, from common/rpc/client_security.h; null: plain text, no token.
  std::shared_ptr<const rpc::ClientSecurity> security;
};

struct GetRequest {
  BlockKey key;
  BlockKey placement;  // as in BlockSpec
  std::vector<LocalPiece>
      pieces;  // parts of the block to fetch; each covers whole slices of the block's table
};

// How blocks travelled, summed over a call.
struct TransferTotals {
  uint64_t bytes = 0;
  uint64_t blocks = 0;
  std::string lanes;  // distinct lanes, comma-separated: "posix", "tcp", "grpc"
};

// Blocks being written, to all their replicas at once. Per item: kOk (reserved by one replica at
// least), kAlreadyExists (stored, nothing to write), or why it cannot be stored
// (kResourceExhausted: full of pinned blocks, or the tenant's quota; the caller goes on without
// caching).
class PutBatch {
 public:
  virtual ~PutBatch() = default;  // revokes what was not committed
  virtual absl::Span<const absl::Status> statuses() const = 0;
  // Starts writing pieces of item i (no-op for items that were not reserved). The memory must stay
  // unchanged until Commit returned. Errors surface at Commit.
  virtual void Write(size_t item, absl::Span<const LocalPiece> pieces) = 0;
  // Waits for the writes, then makes the items visible with their slice tables (slices[i] of item
  // i, in order, without gaps, to the block's size). One status per item: OK when write_quorum
  // replicas have it; items not reserved keep theirs.
  virtual std::vector<absl::Status> Commit(absl::Span<const std::vector<Slice>> slices,
                                           Time deadline) = 0;
  virtual TransferTotals totals() const = 0;
};

struct KvNodeStats {
  std::string node;  // endpoint
  std::string zone;
  double weight = 1;
  bool draining = false;
  bool reachable = false;
  std::string error;  // why not
  uint64_t capacity_bytes = 0, used_bytes = 0, pinned_bytes = 0, reserved_bytes = 0,
           quarantined_bytes = 0;
  uint64_t kind_bytes[kNumBlockKinds] = {};  // by BlockKind - 1
  uint64_t kind_blocks[kNumBlockKinds] = {};
  uint64_t hits = 0, misses = 0, evictions = 0, sessions = 0;  // hits, misses in blocks
  std::string lanes;                                           // of this client's connection
  TierStats tier;
  ReplicaStats replicas;
};

struct KvStoreView {
  int replicas = 1;        // that puts aim at
  std::string membership;  // where the list of nodes comes from: "static", "etcd"
  bool connected = true;   // false: the source cannot be reached, the list is the last one known
  std::string error;       // why not
};

class KvClient {
 public:
  virtual ~KvClient() = default;

  // Connects; succeeds when at least one node answers. Nodes that do not are tried again in the
  // background.
  static absl::StatusOr<std::unique_ptr<KvClient>> Create(const KvClientOptions& options);

  // The length of the longest unbroken run of `chain` (all blocks of a prefix, in order) that is
  // stored. One lookup RPC per owner, in parallel; what is missing is asked for at the next
  // replicas. A node that cannot be asked counts as a miss of its blocks. Counts hits, does not
  // pin.
  virtual absl::StatusOr<size_t> Match(absl::Span<const BlockKey> chain, Time deadline) = 0;
  // Which of these keys are stored (for hand-over blocks): one bool per key. `placement[i]` belongs
  // to keys[i].
  virtual std::vector<bool> Exists(absl::Span<const BlockKey> keys,
                                   absl::Span<const BlockKey> placement, Time deadline) = 0;

  // Pins, reads, verifies, unpins; what one replica does not deliver is read from the next. One
  // status per request, of the last replica: kNotFound (evicted or never put), kDataLoss (checksum;
  // that copy was reported and erased), kAborted (lost while reading), kUnavailable,
  // kDeadlineExceeded. Buffers of failed requests are unspecified but no longer
  // written to.
  virtual std::vector<absl::Status> Get(absl::Span<const GetRequest> requests, Time deadline,
                                        TransferTotals* totals) = 0;

  virtual absl::StatusOr<std::unique_ptr<PutBatch>> StartPut(absl::Span<const BlockSpec> items,
                                                             Time deadline) = 0;

  // Extra copies of a block that is read much are erased if this client knows of them, else they
  // end within a minute; lookups do not find them.
  virtual absl::Status Erase(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement,
                             Time deadline) = 0;
  // Who the members are, as far as this client knows.
  virtual KvStoreView View() const = 0;
  // One per member, in the order of their endpoints.
  virtual std::vector<KvNodeStats> Stats(Time deadline) = 0;
};

// The placement key of block i of a chain: the key of the first block of its run of 16.
inline const BlockKey& PlacementOf(absl::Span<const BlockKey> chain, size_t i) {
  return chain[i / 16 * 16];
}

}  // namespace oscarkv
