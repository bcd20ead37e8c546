#include "kvstore/client/put_batch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr Duration kCleanupTimeout = std::chrono::seconds(1);
constexpr int kEndAttempts = 2;  // PutEnd may be repeated

Time Now() {
  return SteadyClock::Get()->Now();
}

}  // namespace

PutBatchImpl::PutBatchImpl(absl::Span<const BlockSpec> specs, KvClientMetrics* metrics)
    : metrics_(metrics),
      start_statuses_(specs.size(), absl::UnavailableError("not asked")),
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
    const size_t i = group.items[k];
    start_statuses_[i] = whole.ok() ? answer->statuses[k] : whole;
    if (!start_statuses_[i].ok()) continue;
    Item& item = items_[i];
    item.state = Item::State::kOpen;
    item.node = index;
    item.offset = answer->offsets[k];
    item.generation = answer->generations[k];
    node.items.push_back(i);
    const uint64_t arena = group.link->grant.arena_bytes;
    if (item.offset > arena || item.size > arena - item.offset) {
      item.failed = absl::InternalError("the node reserved memory outside of its arena");
    }
  }
  CountErrors(metrics_, "put_start", start_statuses_);
}

void PutBatchImpl::Write(size_t index, absl::Span<const LocalPiece> pieces) {
  if (index >= items_.size() || items_[index].state != Item::State::kOpen ||
      !items_[index].failed.ok())
    return;
  Item& item = items_[index];
  Node& node = nodes_[item.node];
  if (first_write_ == Time{}) first_write_ = Now();
  std::vector<TransferOp> ops;
  for (const LocalPiece& p : pieces) {
    if (p.data == nullptr || p.offset > item.size || p.length > item.size - p.offset) {
      item.failed = absl::InvalidArgumentError(absl::StrCat(
          "piece of ", p.length, " bytes at ", p.offset, " of a block of ", item.size));
      return;
    }
    item.written += p.length;
    if (p.length == 0) continue;
    if (node.writer != nullptr) {
      item.streamed = true;
      node.writer->Send(
          {{keys_[index], item.generation, p.offset}, absl::MakeConstSpan(p.data, p.length)});
    } else {
      ops.push_back(
          {TransferKind::kWrite, p.data, p.length, node.link->arena.get(), item.offset + p.offset});
    }
  }
  if (ops.empty()) return;
  absl::StatusOr<std::unique_ptr<TransferHandle>> handle =
      node.link->peer->Post(ops, node.writes_until);
  if (handle.ok()) {
    item.handles.push_back(*std::move(handle));
  } else {
    item.failed = NodeStatus(node, handle.status());
    node.connection->Judge(node.link, item.failed);
  }
}

void PutBatchImpl::AwaitWrites(Node* node, Time deadline) {
  for (size_t i : node->items) {
    Item& item = items_[i];
    if (item.state != Item::State::kOpen) continue;
    for (const auto& handle : item.handles) {
      const absl::Status status = handle->Wait(std::min(deadline, node->writes_until));
      if (!status.ok() && item.failed.ok()) item.failed = NodeStatus(*node, status);
    }
    DrainOrClose(item.handles, node->connection, node->link);
    item.handles.clear();
    if (!item.failed.ok()) node->connection->Judge(node->link, item.failed);
  }
}

void PutBatchImpl::AwaitStream(Node* node, Time deadline) {
  if (node->writer == nullptr) return;
  const StreamWriter::Result result = node->writer->Finish(std::min(deadline, node->writes_until));
  node->connection->Judge(node->link, result.whole);
  for (size_t i : node->items) {
    Item& item = items_[i];
    if (!std::exchange(item.streamed, false)) continue;
    if (!result.whole.ok()) item.failed = NodeStatus(*node, result.whole);
    for (const auto& [key, status] : result.errors) {
      if (key == keys_[i] && item.failed.ok()) item.failed = status;
    }
  }
}

absl::StatusOr<kv::SliceTable> PutBatchImpl::TableOf(size_t i,
                                                     const std::vector<Slice>& slices) const {
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

void PutBatchImpl::EndAll(absl::Span<const std::vector<Slice>> slices, Time deadline,
                          std::vector<absl::Status>* statuses) {
  CallBarrier barrier;
  std::vector<absl::StatusOr<kv::PutEndResponse>> answers(nodes_.size(),
                                                          absl::UnknownError("no answer"));
  std::vector<std::vector<size_t>> asked(nodes_.size());
  for (size_t n = 0; n < nodes_.size(); ++n) {
    kv::PutEndRequest request;
    for (size_t i : nodes_[n].items) {
      if (items_[i].state != Item::State::kOpen) continue;
      (*statuses)[i] = items_[i].failed;
      if (!items_[i].failed.ok()) continue;
      absl::StatusOr<kv::SliceTable> table = TableOf(i, slices[i]);
      (*statuses)[i] = table.status();
      if (!table.ok()) continue;
      asked[n].push_back(i);
      request.items.push_back({keys_[i], items_[i].generation, *std::move(table)});
    }
    if (asked[n].empty()) continue;
    request.session_id = nodes_[n].link->grant.session_id;
    StartCall(nodes_[n].link->stub.get(), std::move(request), deadline, &barrier, &answers[n]);
  }
  barrier.Wait();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (asked[n].empty()) continue;
    const bool matches = answers[n].ok() && answers[n]->statuses.size() == asked[n].size();
    if (!answers[n].ok()) nodes_[n].connection->Judge(nodes_[n].link, answers[n].status());
    for (size_t k = 0; k < asked[n].size(); ++k) {
      const size_t i = asked[n][k];
      (*statuses)[i] =
          matches ? answers[n]->statuses[k] : NodeStatus(nodes_[n], answers[n].status());
      if ((*statuses)[i].ok()) items_[i].state = Item::State::kDone;
    }
  }
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
  std::vector<size_t> open;
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].state == Item::State::kOpen) open.push_back(i);
  }
  for (Node& node : nodes_) {
    AwaitWrites(&node, deadline);
    AwaitStream(&node, deadline);
  }
  const auto retriable = [&](size_t i) {
    return absl::IsUnavailable(statuses[i]) && items_[i].failed.ok();
  };
  for (int attempt = 0; attempt < kEndAttempts; ++attempt) {
    EndAll(slices, deadline, &statuses);
    if (Now() >= deadline || !std::any_of(open.begin(), open.end(), retriable)) break;
  }
  for (Node& node : nodes_) {
    uint64_t bytes = 0, blocks = 0;
    for (size_t i : node.items) {
      if (items_[i].state != Item::State::kDone || !std::binary_search(open.begin(), open.end(), i))
        continue;
      bytes += items_[i].size;
      ++blocks;
    }
    if (blocks == 0) continue;
    moved_.Add(node.link->lane, bytes, blocks);
    CountTransfer(metrics_, "put", *node.connection, *node.link, bytes, blocks,
                  Now() - first_write_);
  }
  CountErrors(metrics_, "put_commit", statuses);
  if (metrics_ != nullptr)
    metrics_->op_seconds.HistogramWith({"put_commit"}).Observe(Seconds(Now() - started));
  return statuses;
}

void PutBatchImpl::RevokeOpen(Node* node) {
  node->writer.reset();  // waits: nothing of it is under way any more
  kv::PutRevokeRequest request;
  for (size_t i : node->items) {
    if (items_[i].state != Item::State::kOpen) continue;
    // After this nothing of ours is under way into the block: its memory can be reused at once.
    DrainOrClose(items_[i].handles, node->connection, node->link);
    request.generations.push_back(items_[i].generation);
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
