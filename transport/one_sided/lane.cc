#include "transport/one_sided/lane.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// One operation of the network library: on shared memory it is a copy on the spot, and between two
// of them the thread looks at cancellations, deadlines and the peer's liveness.
constexpr uint64_t kMaxOperation = 1 << 20;
constexpr int kMaxOutstanding = 16;
constexpr int kOperationsPerTurn = 8;

// The local side of the read that checks a trailer; lives as long as the read.
struct TrailerBuffer final : RegionCore {
  TrailerBuffer() { span = {reinterpret_cast<uint8_t*>(&trailer), sizeof(trailer)}; }
  RegionTrailer trailer{0, 0, 0, 0};
};

}  // namespace

struct OneSidedLane::Remote final : RemoteCore {
  uint64_t base = 0;
  std::unique_ptr<RmaKey> key;  // of the progress thread
};

class OneSidedLane::Connection final : public LaneConnection {
 public:
  Connection(OneSidedLane* lane, UniqueFd liveness)
      : LaneConnection(lane->lane_class_, lane->thread_.get(), lane->metrics_),
        lane_(lane),
        liveness_(std::move(liveness)) {}

  absl::StatusOr<std::shared_ptr<RemoteCore>> Import(const RegionDescriptor& region) override;

  // --- on the progress thread ---
  absl::Status Start(const std::string& worker_address);
  bool Pump(Time now);
  // Before the endpoint goes; callers may hold on to the regions.
  void ReleaseKeys() {
    for (const auto& remote : remotes_) remote->key.reset();
    remotes_.clear();
  }
  bool busy() const { return outstanding_ > 0 || !transfers_.empty(); }
  Time NextDeadline() const;

 private:
  void OnSubmit(std::shared_ptr<Transfer> transfer) override;
  void OnSweep(Time now) override;
  void OnShut(const absl::Status& status) override;
  absl::StatusOr<std::shared_ptr<Remote>> Unpack(const RegionDescriptor& region,
                                                 const RegionKey& key);
  void OnDone(const std::shared_ptr<Transfer>& transfer, uint64_t bytes,
              const absl::Status& status);
  void Confirm(const std::shared_ptr<Transfer>& transfer, uint64_t bytes);
  void Finish(const std::shared_ptr<Transfer>& transfer, absl::Status status);
  bool StartPiece(const std::shared_ptr<Transfer>& transfer);

  OneSidedLane* const lane_;
  UniqueFd liveness_;  // ours until Start watches it

  // Of the progress thread.
  std::unique_ptr<RmaEndpoint> endpoint_;
  std::vector<std::shared_ptr<Transfer>> transfers_;  // in the order of Submit
  std::vector<std::shared_ptr<Remote>> remotes_;      // their keys go with the endpoint
  int outstanding_ = 0;
};

absl::Status OneSidedLane::Connection::Start(const std::string& worker_address) {
  ASSIGN_OR_RETURN(
      endpoint_,
      lane_->engine_->Connect(
          worker_address, [this](const std::shared_ptr<Transfer>& transfer, uint64_t bytes,
                                 const absl::Status& status) { OnDone(transfer, bytes, status); }));
  if (liveness_.ok()) {
    thread_->Watch(liveness_.get(), [this] {
      // Nothing is ever sent here; should something be, it is no reason to close.
      if (HungUp(liveness_.get())) Shut(absl::UnavailableError("the peer is gone"));
    });
  }
  lane_->connections_.push_back(std::static_pointer_cast<Connection>(shared_from_this()));
  SetOpen(endpoint_->transports());
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<OneSidedLane::Remote>> OneSidedLane::Connection::Unpack(
    const RegionDescriptor& region, const RegionKey& key) {
  if (!open()) return absl::UnavailableError("connection is broken or closed");
  // Forget the keys whose regions the caller has dropped: this is where they would pile up.
  remotes_.erase(
      std::remove_if(remotes_.begin(), remotes_.end(),
                     [](const std::shared_ptr<Remote>& r) { return r.use_count() == 1; }),
      remotes_.end());
  auto remote = std::make_shared<Remote>();
  remote->id = region.id;
  remote->token = region.token;
  remote->size = region.size;
  remote->base = key.base;
  ASSIGN_OR_RETURN(
      remote->key,
      endpoint_->Unpack(key.rkey, key.base, TrailerOffset(region.size) + sizeof(RegionTrailer)));
  remotes_.push_back(remote);
  return remote;
}

absl::StatusOr<std::shared_ptr<RemoteCore>> OneSidedLane::Connection::Import(
    const RegionDescriptor& region) {
  const auto key = std::find_if(region.keys.begin(), region.keys.end(),
                                [this](const RegionKey& k) { return k.lane == lane_class(); });
  if (key == region.keys.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the peer's region has no key for lane ", LaneClassName(lane_class())));
  }
  constexpr uint64_t kLargest = uint64_t{1} << 48;
  if (region.size > kLargest || key->base > kLargest) {
    return absl::InvalidArgumentError(
        absl::StrCat("region of ", region.size, " bytes at ", key->base, " cannot be"));
  }
  absl::StatusOr<std::shared_ptr<Remote>> remote =
      absl::UnavailableError("transport was shut down");
  thread_->RunAndWait([&] { remote = Unpack(region, *key); });
  if (!remote.ok()) return remote.status();

  const Time now = SteadyClock::Get()->Now();
  auto buffer = std::make_shared<TrailerBuffer>();
  std::vector<ResolvedOp> ops = {{TransferKind::kRead, buffer->span.data(), sizeof(RegionTrailer),
                                  TrailerOffset(region.size), buffer, *remote}};
  auto transfer = std::make_shared<Transfer>(std::move(ops), now + lane_->import_timeout_, now);
  const std::shared_ptr<TransferState> state = transfer->state;
  Submit(std::move(transfer));
  Await(*state, Time::max());  // its own deadline ends it
  RETURN_IF_ERROR(state->status());
  const RegionTrailer& got = buffer->trailer;
  if (got.magic != RegionTrailer().magic || got.id != region.id || got.token != region.token ||
      got.size != region.size) {
    return absl::NotFoundError(
        "what the key leads to is not the exported region: it was freed, or the descriptor is "
        "wrong");
  }
  return *std::move(remote);
}

void OneSidedLane::Connection::OnSubmit(std::shared_ptr<Transfer> transfer) {
  if (!transfer->state->Start()) {
    CountEnd(*transfer);
    return;
  }
  transfers_.push_back(transfer);
  if (SteadyClock::Get()->Now() >= transfer->deadline) {
    Finish(transfer, absl::DeadlineExceededError("transfer did not end before its deadline"));
  } else if (transfer->unconfirmed == 0) {
    Finish(transfer, absl::OkStatus());
  }
}

bool OneSidedLane::Connection::Pump(Time now) {
  if (const absl::Status status = endpoint_->status(); !status.ok()) {
    Shut(status);
    return true;
  }
  OnSweep(now);
  int started = 0;
  for (size_t i = 0; i < transfers_.size() && !shut();) {
    if (started == kOperationsPerTurn || outstanding_ >= kMaxOutstanding) break;
    const std::shared_ptr<Transfer> transfer = transfers_[i];
    if (StartPiece(transfer)) {
      ++started;  // if that ended it, the next one has its place now
    } else {
      ++i;  // all of its pieces are on their way
    }
  }
  return started > 0;
}

bool OneSidedLane::Connection::StartPiece(const std::shared_ptr<Transfer>& transfer) {
  Transfer::Piece piece;
  if (transfer->state->ended()) {  // cancelled between two pieces
    Finish(transfer, absl::CancelledError("transfer cancelled"));
    return true;
  }
  if (!transfer->Peek(kMaxOperation, kMaxOperation, &piece)) return false;
  const auto& remote = static_cast<const Remote&>(*piece.op->remote);
  const auto done =
      endpoint_->Start(piece, remote.base + piece.remote_offset, *remote.key, transfer);
  transfer->Take(piece);
  if (!done.ok()) {
    Finish(transfer, done.status());
  } else if (*done == RmaEndpoint::Started::kDone) {
    Confirm(transfer, piece.length);
  } else {
    ++outstanding_;
  }
  return true;
}

void OneSidedLane::Connection::OnDone(const std::shared_ptr<Transfer>& transfer, uint64_t bytes,
                                      const absl::Status& status) {
  --outstanding_;
  if (shut()) return;
  if (!status.ok()) {
    Finish(transfer, status);
  } else if (bytes == 0) {  // the flush
    Finish(transfer, absl::OkStatus());
  } else {
    Confirm(transfer, bytes);
  }
}

void OneSidedLane::Connection::Confirm(const std::shared_ptr<Transfer>& transfer, uint64_t bytes) {
  transfer->unconfirmed -= bytes;
  if (transfer->unconfirmed > 0 || transfer->state->ended()) return;
  if (transfer->write_bytes == 0) {
    Finish(transfer, absl::OkStatus());
    return;
  }
  const auto done = endpoint_->Flush(transfer);
  if (!done.ok()) {
    Finish(transfer, done.status());
  } else if (*done == RmaEndpoint::Started::kDone) {
    Finish(transfer, absl::OkStatus());
  } else {
    ++outstanding_;
  }
}

void OneSidedLane::Connection::Finish(const std::shared_ptr<Transfer>& transfer,
                                      absl::Status status) {
  auto it = std::find(transfers_.begin(), transfers_.end(), transfer);
  if (it == transfers_.end()) return;  // ended before; this was its last operation in flight
  const std::shared_ptr<Transfer> finished = std::move(*it);
  transfers_.erase(it);
  finished->state->End(std::move(status));
  CountEnd(*finished);
}

void OneSidedLane::Connection::OnSweep(Time now) {
  for (size_t i = transfers_.size(); i-- > 0;) {
    const std::shared_ptr<Transfer> transfer = transfers_[i];
    if (transfer->state->ended()) {
      Finish(transfer, absl::CancelledError("transfer cancelled"));
    } else if (now >= transfer->deadline) {
      Finish(transfer, absl::DeadlineExceededError("transfer did not end before its deadline"));
    }
  }
}

void OneSidedLane::Connection::OnShut(const absl::Status& status) {
  if (liveness_.ok()) thread_->Unwatch(liveness_.get());
  liveness_.reset();
  while (!transfers_.empty()) Finish(std::shared_ptr<Transfer>(transfers_.back()), status);
  auto self = std::static_pointer_cast<Connection>(shared_from_this());
  auto& all = lane_->connections_;
  all.erase(std::remove(all.begin(), all.end(), self), all.end());
  if (endpoint_ == nullptr) {
    SetClosed();
    return;
  }
  endpoint_->Close();
  lane_->closing_.push_back({std::move(endpoint_), std::move(self)});
}

Time OneSidedLane::Connection::NextDeadline() const {
  Time next = Time::max();
  for (const auto& transfer : transfers_) next = std::min(next, transfer->deadline);
  return next;
}

OneSidedLane::OneSidedLane(LaneClass lane_class, std::unique_ptr<RmaEngine> engine,
                           std::unique_ptr<LivenessListener> listener,
                           const TransportMetrics::Lane* metrics, Duration spin,
                           Duration import_timeout)
    : lane_class_(lane_class),
      engine_(std::move(engine)),
      listener_(std::move(listener)),
      metrics_(metrics),
      import_timeout_(import_timeout) {
  // Not make_unique: the driver is a private base.
  thread_.reset(new ProgressThread(this, absl::StrCat("okv-", LaneClassName(lane_class)), spin));
  if (listener_ != nullptr) {
    thread_->Run([this] { listener_->Start(thread_.get()); });
  }
}

OneSidedLane::~OneSidedLane() {
  Stop();
  for (Closing& c : closing_) c.connection->ReleaseKeys();  // those that did not close in time
}

absl::StatusOr<std::shared_ptr<LaneConnection>> OneSidedLane::Connect(
    const std::string& worker_address, const RegionDescriptor& probe, UniqueFd liveness) {
  auto connection = std::make_shared<Connection>(this, std::move(liveness));
  absl::Status status = absl::UnavailableError("transport was shut down");
  thread_->RunAndWait([&] {
    status = connection->Start(worker_address);
    if (!status.ok()) connection->Shut(status);
  });
  RETURN_IF_ERROR(status);
  if (absl::Status proof = connection->Import(probe).status(); !proof.ok()) {
    connection->Close();
    return proof;
  }
  return connection;
}

bool OneSidedLane::Pump(Time now) {
  bool active = false;
  for (size_t i = connections_.size(); i-- > 0;) {  // one that breaks leaves the list
    active |= std::shared_ptr<Connection>(connections_[i])->Pump(now);
  }
  for (size_t i = closing_.size(); i-- > 0;) {
    if (!closing_[i].endpoint->closed()) continue;
    closing_[i].connection->ReleaseKeys();
    closing_[i].endpoint.reset();
    closing_[i].connection->SetClosed();
    closing_.erase(closing_.begin() + static_cast<ptrdiff_t>(i));
    active = true;
  }
  return active;
}

bool OneSidedLane::Busy() const {
  return !closing_.empty() || std::any_of(connections_.begin(), connections_.end(),
                                          [](const auto& c) { return c->busy(); });
}

Time OneSidedLane::NextDeadline() const {
  // A closing endpoint may need a look without an event.
  if (!closing_.empty()) return SteadyClock::Get()->Now() + std::chrono::milliseconds(1);
  Time next = Time::max();
  for (const auto& connection : connections_) next = std::min(next, connection->NextDeadline());
  return next;
}

void OneSidedLane::BeginClose() {
  while (!connections_.empty()) {
    std::shared_ptr<Connection>(connections_.back())
        ->Shut(absl::UnavailableError("transport was shut down"));
  }
  if (listener_ != nullptr) listener_->Stop();
}

}  // namespace oscarkv
