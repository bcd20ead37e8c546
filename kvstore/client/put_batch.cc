#include "kvstore/client/put_batch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr Duration kCleanupTimeout = std::chrono::seconds(1);
constexpr int kEndAttempts = 2;  // PutEnd may be repeated
// What Commit waits for one replica's transfers, and for its answer, while others did their part.
constexpr Duration kReplicaPatience = std::chrono::seconds(1);

Time Now() {
  return SteadyClock::Get()->Now();
}

}  // namespace

PutBatchImpl::PutBatchImpl(absl::Span<const BlockSpec> specs, ViewPtr view, int write_quorum,
                           KvClientMetrics* metrics)
    : view_(std::move(view)),
      write_quorum_(static_cast<size_t>(write_quorum)),
      metrics_(metrics),
      start_statuses_(specs.size(), absl::UnavailableError("the store has no nodes")),
      items_(specs.size()) {
  for (size_t i = 0; i < specs.size(); ++i) {
    keys_.push_back(specs[i].key);
    items_[i].size = specs[i].size;
  }
}

absl::Status PutBatchImpl::NodeStatus(const Node& node, const absl::Status& status) const {
  if (status.ok() || absl::IsDeadlineExceeded(status) || absl::IsInvalidArgument(status))
    return status;
  return absl::UnavailableError(
      absl::StrCat("kvstore node ", node.connection->node(), ": ", status.ToString()));
}

void PutBatchImpl::AddGroup(const NodeGroup& group, absl::StatusOr<kv::PutStartResponse> answer,
                            Time started) {
  const size_t index = nodes_.size();
  nodes_.push_back({group.connection, group.link, started, {}, nullptr});
  Node& node = nodes_.back();
  absl::Status whole = group.link == nullptr ? answer.status() : NodeStatus(node, answer.status());
  const size_t n = group.items.size();
  if (whole.ok() && (answer->statuses.size() != n || answer->offsets.size() != n ||
                     answer->generations.size() != n)) {
    whole = absl::InternalError("the node answered for another number of blocks");
  }
  if (whole.ok()) {
    node.writes_until = started + group.link->grant.put_ttl;
    if (group.link->streams())
      node.writer = std::make_unique<StreamWriter>(group.link, node.writes_until);
  }
  for (size_t k = 0; k < n; ++k) {
    Item& item = items_[group.items[k]];
    const absl::Status& status = whole.ok() ? answer->statuses[k] : whole;
    item.stored += absl::IsAlreadyExists(status);
    item.unreached |= absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
    if (!status.ok()) {
      if (!absl::IsAlreadyExists(status) && item.refused.ok()) item.refused = status;
      continue;
    }
    Copy copy;
    copy.node = index;
    copy.offset = answer->offsets[k];
    copy.generation = answer->generations[k];
    const uint64_t arena = group.link->grant.arena_bytes;
    if (copy.offset > arena || item.size > arena - copy.offset) {
      copy.failed = absl::InternalError("the node reserved memory outside of its arena");
    }
    node.copies.emplace_back(group.items[k], item.copies.size());
    item.copies.push_back(std::move(copy));
  }
}

void PutBatchImpl::Started() {
  for (size_t i = 0; i < items_.size(); ++i) {
    const Item& item = items_[i];
    if (item.open()) {
      start_statuses_[i] = absl::OkStatus();
    } else if (item.stored >= write_quorum_) {
      start_statuses_[i] = absl::AlreadyExistsError("stored");
    } else if (!item.refused.ok()) {
      start_statuses_[i] = item.refused;
    } else if (item.stored > 0) {
      start_statuses_[i] = Verdict(i);
    }
  }
  CountErrors(metrics_, "put_start", start_statuses_);
}

void PutBatchImpl::Write(size_t index, absl::Span<const LocalPiece> pieces) {
  if (index >= items_.size() || !items_[index].open() || !items_[index].wrong.ok()) return;
  Item& item = items_[index];
  if (first_write_ == Time{}) first_write_ = Now();
  for (const LocalPiece& p : pieces) {
    if (p.data == nullptr || p.offset > item.size || p.length > item.size - p.offset) {
      item.wrong = absl::InvalidArgumentError(absl::StrCat("piece of ", p.length, " bytes at ",
                                                           p.offset, " of a block of ", item.size));
      return;
    }
    item.written += p.length;
  }
  for (Copy& copy : item.copies) {
    if (copy.committed || !copy.failed.ok()) continue;
    Node& node = nodes_[copy.node];
    std::vector<TransferOp> ops;
    for (const LocalPiece& p : pieces) {
      if (p.length == 0) continue;
      if (node.writer != nullptr) {
        copy.streamed = true;
        node.writer->Send(
            {{keys_[index], copy.generation, p.offset}, absl::MakeConstSpan(p.data, p.length)});
      } else {
        ops.push_back({TransferKind::kWrite, p.data, p.length, node.link->arena.get(),
                       copy.offset + p.offset});
      }
    }
    if (ops.empty()) continue;
    absl::StatusOr<std::unique_ptr<TransferHandle>> handle =
        node.link->peer->Post(ops, node.writes_until);
    if (handle.ok()) {
      copy.handles.push_back(*std::move(handle));
    } else {
      copy.failed = NodeStatus(node, handle.status());
      node.connection->Judge(node.link, copy.failed);
    }
  }
}

Time PutBatchImpl::Patience(const Node& node, Time deadline) const {
  const Time until = std::min(deadline, node.writes_until);
  return nodes_.size() > 1 && view_->replicas > 1 ? std::min(until, Now() + kReplicaPatience)
                                                  : until;
}

void PutBatchImpl::AwaitWrites(Node* node, Time deadline) {
  const Time until = Patience(*node, deadline);
  for (const auto& [i, c] : node->copies) {
    Copy& copy = items_[i].copies[c];
    if (copy.committed) continue;
    for (const auto& handle : copy.handles) {
      const absl::Status status = handle->Wait(until);
      if (!status.ok() && copy.failed.ok()) copy.failed = NodeStatus(*node, status);
    }
    DrainOrClose(copy.handles, node->connection, node->link);
    copy.handles.clear();
    if (!copy.failed.ok()) node->connection->Judge(node->link, copy.failed);
  }
}

void PutBatchImpl::AwaitStream(Node* node, Time deadline) {
  if (node->writer == nullptr) return;
  const StreamWriter::Result result = node->writer->Finish(Patience(*node, deadline));
  node->connection->Judge(node->link, result.whole);
  for (const auto& [i, c] : node->copies) {
    Copy& copy = items_[i].copies[c];
    if (!std::exchange(copy.streamed, false)) continue;
    if (!result.whole.ok()) copy.failed = NodeStatus(*node, result.whole);
    for (const auto& [key, status] : result.errors) {
      if (key == keys_[i] && copy.failed.ok()) copy.failed = status;
    }
  }
}

absl::StatusOr<kv::SliceTable> PutBatchImpl::TableOf(size_t i,
                                                     const std::vector<Slice>& slices) const {
  if (!items_[i].wrong.ok()) return items_[i].wrong;
  kv::SliceTable table;
  uint64_t at = 0;
  for (const Slice& s : slices) {
    if (s.offset != at) {
      return absl::InvalidArgumentError(
          absl::StrCat("slice at ", s.offset, " after one that ends at ", at));
    }
    table.lengths.push_back(s.length);
    table.crc32c.push_back(s.crc32c);
    at += s.length;
  }
  if (at != items_[i].size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the slices cover ", at, " of ", items_[i].size, " bytes"));
  }
  if (items_[i].written < items_[i].size) {
    return absl::InvalidArgumentError(
        absl::StrCat("only ", items_[i].written, " of ", items_[i].size, " bytes were written"));
  }
  return table;
}

bool PutBatchImpl::EndAll(absl::Span<const std::vector<Slice>> slices, Time deadline) {
  CallBarrier barrier;
  std::vector<absl::StatusOr<kv::PutEndResponse>> answers(nodes_.size(),
                                                          absl::UnknownError("no answer"));
  std::vector<std::vector<std::pair<size_t, size_t>>> asked(nodes_.size());
  for (Item& item : items_) item.refused = absl::OkStatus();  // of this round
  for (size_t n = 0; n < nodes_.size(); ++n) {
    kv::PutEndRequest request;
    for (const auto& [i, c] : nodes_[n].copies) {
      const Copy& copy = items_[i].copies[c];
      if (copy.committed) continue;
      absl::StatusOr<kv::SliceTable> table = TableOf(i, slices[i]);
      const absl::Status& status = table.ok() ? copy.failed : table.status();
      if (!status.ok() && items_[i].refused.ok()) items_[i].refused = status;
      if (!status.ok()) continue;
      asked[n].emplace_back(i, c);
      request.items.push_back({keys_[i], copy.generation, *std::move(table)});
    }
    if (asked[n].empty()) continue;
    request.session_id = nodes_[n].link->grant.session_id;
    StartCall(nodes_[n].link->stub.get(), std::move(request), Patience(nodes_[n], deadline),
              &barrier, &answers[n]);
  }
  barrier.Wait();
  bool lost = false;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (asked[n].empty()) continue;
    const bool matches = answers[n].ok() && answers[n]->statuses.size() == asked[n].size();
    if (!answers[n].ok()) nodes_[n].connection->Judge(nodes_[n].link, answers[n].status());
    for (size_t k = 0; k < asked[n].size(); ++k) {
      const auto [i, c] = asked[n][k];
      const absl::Status status =
          matches ? answers[n]->statuses[k] : NodeStatus(nodes_[n], answers[n].status());
      lost |= absl::IsUnavailable(status);
      if (status.ok()) {
        items_[i].copies[c].committed = true;
        ++items_[i].stored;
      } else if (items_[i].refused.ok()) {
        items_[i].refused = status;
      }
    }
  }
  return lost;
}

absl::Status PutBatchImpl::Verdict(size_t i) const {
  const Item& item = items_[i];
  if (item.stored >= write_quorum_) return absl::OkStatus();
  if (!item.refused.ok() && (item.stored == 0 || absl::IsInvalidArgument(item.refused)))
    return item.refused;
  return absl::UnavailableError(
      absl::StrCat("only ", item.stored, " of the ", write_quorum_,
                   " copies that the write quorum wants: ", item.refused.ToString()));
}

std::vector<absl::Status> PutBatchImpl::Commit(absl::Span<const std::vector<Slice>> slices,
                                               Time deadline) {
  const Time started = Now();
  std::vector<absl::Status> statuses = start_statuses_;
  if (slices.size() != items_.size()) {
    std::fill(statuses.begin(), statuses.end(),
              absl::InvalidArgumentError(
                  absl::StrCat(slices.size(), " slice tables for ", items_.size(), " blocks")));
    return statuses;
  }
  std::vector<std::vector<bool>> before;
  for (const Node& node : nodes_) {
    before.emplace_back();
    for (const auto& [i, c] : node.copies) before.back().push_back(items_[i].copies[c].committed);
  }
  for (Node& node : nodes_) {
    AwaitWrites(&node, deadline);
    AwaitStream(&node, deadline);
  }
  for (int attempt = 0; attempt < kEndAttempts; ++attempt) {
    if (!EndAll(slices, deadline) || Now() >= deadline) break;
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    if (!items_[i].open()) continue;
    statuses[i] = Verdict(i);
    if (statuses[i].ok() && items_[i].stored < view_->replicas && metrics_ != nullptr)
      metrics_->short_puts.Get().Increment();
  }
  CountMoved(before);
  CountErrors(metrics_, "put_commit", statuses);
  if (metrics_ != nullptr)
    metrics_->op_seconds.HistogramWith({"put_commit"}).Observe(Seconds(Now() - started));
  return statuses;
}

void PutBatchImpl::CountMoved(const std::vector<std::vector<bool>>& before) {
  for (size_t n = 0; n < nodes_.size(); ++n) {
    uint64_t bytes = 0, blocks = 0;
    for (size_t k = 0; k < nodes_[n].copies.size(); ++k) {
      const auto [i, c] = nodes_[n].copies[k];
      if (!items_[i].copies[c].committed || before[n][k]) continue;
      bytes += items_[i].size;
      ++blocks;
    }
    if (blocks == 0) continue;
    moved_.Add(nodes_[n].link->lane, bytes, blocks);
    CountTransfer(metrics_, "put", *nodes_[n].connection, *nodes_[n].link, bytes, blocks,
                  Now() - first_write_);
  }
}

void PutBatchImpl::RevokeOpen(Node* node) {
  node->writer.reset();  // waits: nothing of it is under way any more
  kv::PutRevokeRequest request;
  for (const auto& [i, c] : node->copies) {
    Copy& copy = items_[i].copies[c];
    if (copy.committed) continue;
    // After this nothing of ours is under way into the block: its memory can be reused at once.
    DrainOrClose(copy.handles, node->connection, node->link);
    request.generations.push_back(copy.generation);
  }
  if (request.generations.empty()) return;
  request.session_id = node->link->grant.session_id;
  request.drained = true;
  // Nobody waits: if it does not arrive, the reservation expires.
  node->link->stub->Call(std::move(request), Now() + kCleanupTimeout,
                         [](const absl::StatusOr<kv::KvResponse>&) {});
}

PutBatchImpl::~PutBatchImpl() {
  for (Node& node : nodes_) RevokeOpen(&node);
  items_.clear();  // their handles, before the links
}

}  // namespace oscarkv
