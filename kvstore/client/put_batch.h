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
// Write starts the transfer at once, one-sided or by a StreamWriter; Commit waits for the
// transfers, whose end means that the bytes are in the node's memory.
class PutBatchImpl final : public PutBatch {
 public:
  PutBatchImpl(absl::Span<const BlockSpec> specs, KvClientMetrics* metrics);
  ~PutBatchImpl() override;

  // Takes a node's answer to PutStart over the group's items; `started` is when it was sent.
  void AddGroup(const NodeGroup& group, absl::StatusOr<kv::PutStartResponse> answer, Time started);

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
    std::vector<size_t> items;
    std::unique_ptr<StreamWriter> writer;  // null: one-sided
  };
  struct Item {
    enum class State { kNotReserved, kOpen, kDone };
    State state = State::kNotReserved;
    size_t node = 0;  // in nodes_
    uint64_t offset = 0, generation = 0, size = 0;
    uint64_t written = 0;  // bytes handed to Write
    absl::Status failed;   // first error of its writes
    std::vector<std::unique_ptr<TransferHandle>> handles;
    bool streamed = false;  // since the last Commit
  };

  void AwaitWrites(Node* node, Time deadline);
  void AwaitStream(Node* node, Time deadline);
  absl::StatusOr<kv::SliceTable> TableOf(size_t item, const std::vector<Slice>& slices) const;
  // PutEnd of items that are ready; the answers go to `statuses`.
  void EndAll(absl::Span<const std::vector<Slice>> slices, Time deadline,
              std::vector<absl::Status>* statuses);
  void RevokeOpen(Node* node);
  absl::Status NodeStatus(const Node& node, const absl::Status& status) const;

  KvClientMetrics* const metrics_;
  std::vector<BlockKey> keys_;
  std::vector<absl::Status> start_statuses_;
  std::vector<Item> items_;
  std::vector<Node> nodes_;
  LaneTotals moved_;
  Time first_write_{};
};

}  // namespace oscarkv
