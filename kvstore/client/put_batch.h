// Writing blocks: the reservations of one StartPut, the transfers into them, and the commit.
#pragma once

#include <memory>
#include <vector>

#include "kvstore/client/client.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/client/stream_writer.h"
#include "kvstore/client/transfers.h"

namespace oscarkv {

// One caller at a time. Must be destroyed before the client that made it.
//
// Every item goes to all its replicas: Write starts the transfers at once, one-sided or by a
// StreamWriter; Commit waits for them, whose end means that the bytes are in the nodes' memory, and
// commits the copies at all nodes at the same time. A replica that fails or is slow costs its copy
// only: with others it is given up after a bounded wait, and the put is acknowledged when
// `write_quorum` copies are committed. (Chained writes, from replica to replica, would spare the
// writer's uplink, but add a hop of latency per copy and leave the writer without a verdict when a
// node in the middle dies.)
class PutBatchImpl final : public PutBatch {
 public:
  PutBatchImpl(absl::Span<const BlockSpec> specs, ViewPtr view, int write_quorum,
               KvClientMetrics* metrics);
  ~PutBatchImpl() override;

  // Takes a node's answer to PutStart over the group's items; `started` is when it was sent.
  void AddGroup(const NodeGroup& group, absl::StatusOr<kv::PutStartResponse> answer, Time started);
  // A node that was asked for this item could not be reached.
  bool LacksNode(size_t item) const { return items_[item].unreached; }
  // After the last AddGroup: settles the statuses.
  void Started();

  absl::Span<const absl::Status> statuses() const override { return start_statuses_; }
  void Write(size_t item, absl::Span<const LocalPiece> pieces) override;
  std::vector<absl::Status> Commit(absl::Span<const std::vector<Slice>> slices,
                                   Time deadline) override;
  TransferTotals totals() const override { return moved_.totals(); }

 private:
  struct Node {
    NodeConnection* connection;
    LinkPtr link;
    Time writes_until;  // a transfer must end before the reservation does
    std::vector<std::pair<size_t, size_t>> copies;  // (item, its copy)
    std::unique_ptr<StreamWriter> writer;           // null: one-sided
  };
  // Of an item at one node, from reservation to commit.
  struct Copy {
    size_t node = 0;  // in nodes_
    uint64_t offset = 0, generation = 0;
    bool committed = false;
    absl::Status failed;  // first error of its writes
    std::vector<std::unique_ptr<TransferHandle>> handles;
    bool streamed = false;  // since the last Commit
  };
  struct Item {
    uint64_t size = 0;
    uint64_t written = 0;  // bytes handed to Write
    size_t stored = 0;     // replicas that have it: before, or committed
    bool unreached = false;
    absl::Status wrong;    // what the caller did wrong
    absl::Status refused;  // why a copy was not made, the first reason
    std::vector<Copy> copies;
    bool open() const { return !copies.empty(); }
  };

  // Until when Commit waits for a replica when there are others.
  Time Patience(const Node& node, Time deadline) const;
  void AwaitWrites(Node* node, Time deadline);
  void AwaitStream(Node* node, Time deadline);
  absl::StatusOr<kv::SliceTable> TableOf(size_t item, const std::vector<Slice>& slices) const;
  // PutEnd of the copies that are ready. True: an answer was lost, and asking again may help.
  bool EndAll(absl::Span<const std::vector<Slice>> slices, Time deadline);
  absl::Status Verdict(size_t item) const;
  void CountMoved(const std::vector<std::vector<bool>>& before);
  void RevokeOpen(Node* node);
  absl::Status NodeStatus(const Node& node, const absl::Status& status) const;

  const ViewPtr view_;  // keeps the connections
  const size_t write_quorum_;
  KvClientMetrics* const metrics_;
  std::vector<BlockKey> keys_;
  std::vector<absl::Status> start_statuses_;
  std::vector<Item> items_;
  std::vector<Node> nodes_;
  LaneTotals moved_;
  Time first_write_{};
};

}  // namespace oscarkv
