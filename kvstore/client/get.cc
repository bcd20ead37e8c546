// The steps of NodeRead run for all nodes before the next step begins, so that nodes work at the
// same time. Within a node the blocks are posted in batches of about a megabyte: while a later
// batch travels, the checksums of an earlier one are computed.
//
// A node that is slower than usual is left when another replica can be asked: its pins are released
// when its answer comes after all (NodeConnection::AwaitLate), its transfers are given up and
// drained before the caller may read elsewhere into the same memory.
//
// When is what we read the block? (1) Release says that the pin held until after the read. (2)
// Every slice has the checksum that the table had when the block was pinned. Both are asked for. If
// the node dies before it answers Release, (2) alone stands: the bytes are those of the pinned
// table, so they are taken.
#include "kvstore/client/get.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"

namespace oscarkv {
namespace {

constexpr uint64_t kBatchBytes = 1 << 20;
constexpr size_t kBatchOps = 256;
constexpr Duration kCleanupTimeout = std::chrono::seconds(1);
// What a transfer may take before another replica is tried: a second, and what a slow network
// needs.
constexpr Duration kTransferPatience = std::chrono::seconds(1);
constexpr uint64_t kSlowBytesPerSecond = 50'000'000;

// A checksum to verify in the caller's memory.
struct Check {
  const uint8_t* data;
  uint64_t length;
  uint32_t crc32c;
};

// A block that is being read.
struct Read {
  size_t item = 0;  // in the call
  uint64_t pin = 0;
  uint64_t generation = 0;
  uint64_t arena_offset = 0;
  uint64_t bytes = 0;
  bool corrupt = false;
  std::vector<Check> checks;
};

struct Batch {
  size_t first = 0, last = 0;  // [first, last) of the reads
  std::unique_ptr<TransferHandle> handle;
};

// The slices that `piece` covers: it must begin and end at their borders.
absl::Status PlanPiece(const LocalPiece& piece, const kv::BlockLocation& block,
                       std::vector<Check>* checks) {
  uint64_t at = 0;
  const uint64_t end = piece.offset + piece.length;
  bool begins = false, ends = false;
  for (size_t s = 0; s < block.slices.lengths.size() && at < end; ++s) {
    const uint64_t length = block.slices.lengths[s];
    begins |= at == piece.offset;
    ends |= at + length == end;
    if (at >= piece.offset && at + length <= end) {
      checks->push_back({piece.data + (at - piece.offset), length, block.slices.crc32c[s]});
    }
    at += length;
  }
  if (begins && ends && end > piece.offset && piece.data != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("piece of ", piece.length, " bytes at ",
                                                 piece.offset, " of a block of ", block.size,
                                                 ": expected whole slices of its table"));
}

bool InsideArena(const kv::BlockLocation& l, uint64_t arena_bytes) {
  uint64_t sum = 0;
  for (uint64_t length : l.slices.lengths) {
    if (length > l.size - sum) return false;
    sum += length;
  }
  return l.slices.lengths.size() == l.slices.crc32c.size() && sum == l.size &&
         l.offset <= arena_bytes && l.size <= arena_bytes - l.offset;
}

// Waits for GetStart calls, for some of them only for a while. Shared with their callbacks.
class PinBoard {
 public:
  void Add(bool may_leave) {
    MutexLock lock(mu_);
    ++open_[may_leave];
  }
  void Done(bool may_leave) {
    MutexLock lock(mu_);
    --open_[may_leave];
    changed_.NotifyAll();
  }
  // Until all have answered; those that may be left have until `leave_at`, or as long as the
  // others.
  void Wait(Time leave_at) {
    MutexLock lock(mu_);
    while (open_[false] > 0) changed_.Wait(mu_);
    while (open_[true] > 0 && changed_.WaitUntil(mu_, leave_at)) {
    }
  }

 private:
  Mutex mu_;
  CondVar changed_;
  size_t open_[2] GUARDED_BY(mu_) = {};
};

class NodeRead {
 public:
  NodeRead(absl::Span<const GetRequest> requests, const NodeGroup& group, const GetLimits& limits,
           KvClientMetrics* metrics, std::vector<absl::Status>* statuses)
      : requests_(requests),
        group_(group),
        limits_(limits),
        link_(group.link),
        until_(limits.deadline),
        metrics_(metrics),
        statuses_(*statuses) {
    if (link_ == nullptr) SetAll(group_.why);
  }

  void StartPin(const std::shared_ptr<PinBoard>& board) {
    if (link_ == nullptr) return;
    kv::GetStartRequest request{link_->grant.session_id, {}, limits_.pin_ttl};
    request.keys.reserve(group_.items.size());
    for (size_t i : group_.items) request.keys.push_back(requests_[i].key);
    pin_call_ = std::make_shared<PinCall>();
    board->Add(group_.may_leave);
    link_->stub->Call(std::move(request), limits_.deadline,
                      [call = pin_call_, board, may_leave = group_.may_leave,
                       asked = Now()](absl::StatusOr<kv::KvResponse> response) {
                        {
                          MutexLock lock(call->mu);
                          call->answered = true;
                          call->took = Now() - asked;
                          if (response.ok()) {
                            call->response = std::get<kv::GetStartResponse>(*std::move(response));
                          } else {
                            call->response = response.status();
                          }
                        }
                        board->Done(may_leave);
                      });
  }

  void StartTransfers(CallBarrier* streams) {
    if (link_ == nullptr) return;
    if (!TakePins()) {
      group_.connection->AwaitLate(pin_call_, link_);
      pinned_ = absl::DeadlineExceededError(
          absl::StrCat("kvstore node ", group_.connection->node(), " is slower than usual: left"));
    }
    group_.connection->Judge(link_, pinned_.status());
    if (!pinned_.ok()) return SetAll(NodeStatus(pinned_.status()));
    if (pinned_->statuses.size() != group_.items.size() ||
        pinned_->locations.size() != group_.items.size()) {
      return SetAll(absl::InternalError("the node answered for another number of blocks"));
    }
    for (size_t k = 0; k < group_.items.size(); ++k) Plan(group_.items[k], k);
    link_->AddPins(Pins());
    started_ = Now();
    for (const Read& read : reads_) planned_bytes_ += read.bytes;
    group_.connection->ReadBegins(planned_bytes_);
    if (group_.may_leave) {
      const auto needed =
          std::chrono::nanoseconds(planned_bytes_ * 1'000 / (kSlowBytesPerSecond / 1'000'000));
      until_ = std::min(until_, started_ + kTransferPatience + needed);
    }
    if (link_->streams()) {
      StartStream(until_, streams);
    } else {
      PostBatches(until_);
    }
  }

  void Finish() {
    if (link_ == nullptr) return;
    const Time deadline = until_;
    for (Batch& batch : batches_) {
      // A batch of a stream has no handle: its status is the stream's.
      absl::Status status = batch.handle == nullptr ? streamed_ : batch.handle->Wait(deadline);
      if (!status.ok() && batch.handle != nullptr) {
        DrainOrClose(absl::MakeConstSpan(&batch.handle, 1), group_.connection, link_);
        status = TransferStatus(status);
      }
      for (size_t r = batch.first; r < batch.last; ++r) {
        statuses_[reads_[r].item] = status;
        if (status.ok()) Verify(&reads_[r]);
      }
    }
    const absl::Status& moved =
        batches_.empty() || batches_.front().handle != nullptr ? worst_ : streamed_;
    if (!batches_.empty()) group_.connection->Judge(link_, moved);
    group_.connection->ReadEnds(planned_bytes_, moved.ok() ? Now() - started_ : Duration(0));
  }

  // Without time left nobody waits for the verdict; the pins go all the same.
  void StartRelease(CallBarrier* barrier) {
    if (reads_.empty()) return;
    const Time deadline = limits_.deadline;
    kv::ReleaseRequest request{link_->grant.session_id, Pins(), {}};
    for (const Read& r : reads_) request.generations.push_back(r.generation);
    link_->RemovePins(request.pin_ids);
    const Time now = Now();
    if (now < deadline) {
      // A node that may be left gets no longer than its transfers: without a verdict the checksums
      // stand alone.
      StartCall(link_->stub.get(), std::move(request),
                group_.may_leave ? std::min(deadline, now + kTransferPatience) : deadline, barrier,
                &released_);
    } else {
      link_->stub->Call(std::move(request), now + kCleanupTimeout,
                        [](const absl::StatusOr<kv::KvResponse>&) {});
    }
  }

  void Conclude(LaneTotals* moved) {
    if (reads_.empty()) return;
    group_.connection->Judge(link_, released_.status());
    const bool verdicts = released_.ok() && released_->statuses.size() == reads_.size();
    uint64_t bytes = 0, blocks = 0;
    std::vector<const Read*> corrupt;
    for (size_t r = 0; r < reads_.size(); ++r) {
      absl::Status& status = statuses_[reads_[r].item];
      const bool pin_lost =
          verdicts ? !released_->statuses[r].ok() : absl::IsUnauthenticated(released_.status());
      if (pin_lost && (status.ok() || absl::IsDataLoss(status))) {
        status = absl::AbortedError("the pin was lost while the block was read");
      }
      if (absl::IsDataLoss(status)) corrupt.push_back(&reads_[r]);
      if (!status.ok()) continue;
      bytes += reads_[r].bytes;
      ++blocks;
    }
    Report(corrupt);
    moved->Add(link_->lane, bytes, blocks);
    CountTransfer(metrics_, "get", *group_.connection, *link_, bytes, blocks, Now() - started_);
  }

 private:
  static Time Now() { return SteadyClock::Get()->Now(); }

  // False: no answer yet.
  bool TakePins() {
    MutexLock lock(pin_call_->mu);
    if (!pin_call_->answered) return false;
    limits_.pin_times->Add(pin_call_->took);
    pinned_ = std::move(pin_call_->response);
    return true;
  }

  void SetAll(const absl::Status& status) {
    for (size_t i : group_.items) statuses_[i] = status;
    link_ = nullptr;
  }

  std::vector<uint64_t> Pins() const {
    std::vector<uint64_t> pins;
    pins.reserve(reads_.size());
    for (const Read& r : reads_) pins.push_back(r.pin);
    return pins;
  }

  void Plan(size_t item, size_t k) {
    statuses_[item] = pinned_->statuses[k];
    if (!statuses_[item].ok()) return;
    const kv::BlockLocation& location = pinned_->locations[k];
    Read read;
    read.item = item;
    read.pin = location.pin_id;
    read.generation = location.generation;
    read.arena_offset = location.offset;
    limits_.extra->Learn(requests_[item].key, location.extra_copies, Now());
    if (!InsideArena(location, link_->grant.arena_bytes)) {
      statuses_[item] = absl::InternalError(
          "the node sent a location outside of its arena or a broken slice table");
    }
    for (const LocalPiece& piece : requests_[item].pieces) {
      if (!statuses_[item].ok()) break;
      statuses_[item] = PlanPiece(piece, location, &read.checks);
      read.bytes += piece.length;
    }
    reads_.push_back(std::move(read));  // also when it cannot be read: its pin has to go
  }

  void PostBatches(Time deadline) {
    size_t r = 0;
    while (r < reads_.size()) {
      Batch batch;
      batch.first = r;
      std::vector<TransferOp> ops;
      for (uint64_t bytes = 0; r < reads_.size() && bytes < kBatchBytes && ops.size() < kBatchOps;
           ++r) {
        if (!statuses_[reads_[r].item].ok()) {
          if (!ops.empty()) break;
          batch.first = r + 1;
          continue;
        }
        for (const LocalPiece& p : requests_[reads_[r].item].pieces) {
          ops.push_back({TransferKind::kRead, p.data, p.length, link_->arena.get(),
                         reads_[r].arena_offset + p.offset});
        }
        bytes += reads_[r].bytes;
      }
      batch.last = r;
      if (ops.empty()) continue;
      absl::StatusOr<std::unique_ptr<TransferHandle>> handle = link_->peer->Post(ops, deadline);
      if (handle.ok()) {
        batch.handle = *std::move(handle);
        batches_.push_back(std::move(batch));
        continue;
      }
      const absl::Status status = absl::IsInvalidArgument(handle.status())
                                      ? handle.status()
                                      : TransferStatus(handle.status());
      for (size_t i = batch.first; i < batch.last; ++i) statuses_[reads_[i].item] = status;
      group_.connection->Judge(link_, status);
    }
  }

  void StartStream(Time deadline, CallBarrier* streams) {
    std::vector<KvStub::ReadTarget> targets;
    for (size_t r = 0; r < reads_.size(); ++r) {
      if (!statuses_[reads_[r].item].ok()) continue;
      for (const LocalPiece& p : requests_[reads_[r].item].pieces) {
        targets.push_back({{reads_[r].pin, p.offset, p.length}, p.data});
      }
      batches_.push_back({.first = r, .last = r + 1, .handle = nullptr});
    }
    if (targets.empty()) return;
    streams->Add();
    link_->stub->ReadBlocks(link_->grant.session_id, std::move(targets), deadline,
                            [this, streams](const absl::Status& status) {
                              streamed_ = NodeStatus(status);
                              streams->Done();
                            });
  }

  void Verify(Read* read) {
    for (const Check& c : read->checks) {
      if (Crc32c(c.data, c.length) == c.crc32c) continue;
      read->corrupt = true;
      statuses_[read->item] = absl::DataLossError(absl::StrCat(
          "block ", requests_[read->item].key.Hex(), " from ", group_.connection->node(), " by ",
          link_->lane, ": a slice of ", c.length, " bytes has another checksum"));
      return;
    }
  }

  // What a failed transfer means to the caller: its own deadline, or a node that cannot be reached.
  absl::Status TransferStatus(const absl::Status& status) {
    if (absl::IsDeadlineExceeded(status)) {
      worst_ = status;
      return status;
    }
    worst_ = absl::UnavailableError(absl::StrCat("transfer with ", group_.connection->node(),
                                                 " by ", link_->lane, ": ", status.ToString()));
    return worst_;
  }
  // The same for calls. A lost session is repaired in the background; until then the node cannot be
  // used.
  absl::Status NodeStatus(const absl::Status& status) const {
    if (!absl::IsUnauthenticated(status)) return status;
    return absl::UnavailableError(
        absl::StrCat("kvstore node ", group_.connection->node(), ": ", status.message()));
  }

  void Report(const std::vector<const Read*>& corrupt) {
    if (corrupt.empty()) return;
    kv::EraseRequest request{link_->grant.session_id, {}, kv::EraseReason::kCorrupt, {}};
    for (const Read* r : corrupt) {
      request.keys.push_back(requests_[r->item].key);
      request.generations.push_back(r->generation);
    }
    CallAndWait(link_->stub.get(), std::move(request), Now() + kCleanupTimeout).IgnoreError();
  }

  const absl::Span<const GetRequest> requests_;
  const NodeGroup& group_;
  const GetLimits& limits_;
  LinkPtr link_;  // null: nothing (more) to do with this node
  Time until_;    // for the transfers
  std::shared_ptr<PinCall> pin_call_;
  uint64_t planned_bytes_ = 0;
  KvClientMetrics* const metrics_;
  std::vector<absl::Status>& statuses_;
  absl::StatusOr<kv::GetStartResponse> pinned_ = absl::UnknownError("no answer");
  absl::StatusOr<kv::ReleaseResponse> released_ =
      absl::DeadlineExceededError("no time to wait for the answer");
  std::vector<Read> reads_;
  std::vector<Batch> batches_;
  absl::Status streamed_;
  absl::Status worst_;
  Time started_{};
};

}  // namespace

void GetAll(absl::Span<const GetRequest> requests, absl::Span<const NodeGroup> groups,
            const GetLimits& limits, KvClientMetrics* metrics, std::vector<absl::Status>* statuses,
            LaneTotals* moved) {
  std::vector<std::unique_ptr<NodeRead>> reads;
  for (const NodeGroup& group : groups)
    reads.push_back(std::make_unique<NodeRead>(requests, group, limits, metrics, statuses));
  const auto board = std::make_shared<PinBoard>();
  for (const auto& read : reads) read->StartPin(board);
  board->Wait(std::min(limits.deadline, SteadyClock::Get()->Now() + limits.pin_times->Slow()));
  CallBarrier barrier;
  for (const auto& read : reads) read->StartTransfers(&barrier);
  barrier.Wait();  // only for streams
  for (const auto& read : reads) read->Finish();
  for (const auto& read : reads) read->StartRelease(&barrier);
  barrier.Wait();
  for (const auto& read : reads) read->Conclude(moved);
}

}  // namespace oscarkv
