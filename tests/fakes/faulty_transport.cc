#include "tests/fakes/faulty_transport.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"
#include "transport/transfer_state.h"

namespace oscarkv {
namespace {

// Keeps the inner region for delayed transfers that outlive the caller's object.
class FaultyRemoteRegion final : public RemoteRegion {
 public:
  explicit FaultyRemoteRegion(std::shared_ptr<RemoteRegion> inner) : inner_(std::move(inner)) {}
  uint64_t size() const override { return inner_->size(); }
  const std::shared_ptr<RemoteRegion>& inner() const { return inner_; }

 private:
  const std::shared_ptr<RemoteRegion> inner_;
};

// The inner peer and what must stay alive with it.
struct Link {
  std::shared_ptr<Peer> peer;
  std::atomic<bool> broken{false};
  std::atomic<bool> closed{false};
};

struct DelayedTransfer {
  std::shared_ptr<Link> link;
  std::vector<TransferOp> ops;
  std::vector<std::shared_ptr<RemoteRegion>> regions;
  std::shared_ptr<TransferState> state;
};

constexpr std::chrono::seconds kReleaseTimeout(30);

}  // namespace

struct FaultyTransport::Shared {
  std::unique_ptr<Transport> inner;
  std::function<void(TransportCall, uint64_t)> hook;
  // One byte that differs from what the caller wanted to write.
  Mutex scratch_mu;
  std::deque<uint8_t> scratch_bytes GUARDED_BY(scratch_mu);
  std::vector<std::unique_ptr<MemoryRegion>> scratch GUARDED_BY(scratch_mu);

  Mutex mu;
  Fault fault GUARDED_BY(mu);
  uint64_t operations GUARDED_BY(mu) = 0;
  bool fired GUARDED_BY(mu) = false;
  std::vector<DelayedTransfer> delayed GUARDED_BY(mu);

  // Numbers an operation; the fault that applies to it, or kNone.
  Fault Next(TransportCall call) {
    uint64_t n;
    {
      MutexLock lock(mu);
      n = operations++;
    }
    if (hook) hook(call, n);
    MutexLock lock(mu);
    if (fired || n != fault.at || !Applies(fault.kind, call)) return {};
    fired = true;
    return fault;
  }

  static bool Applies(FaultKind kind, TransportCall call) {
    switch (kind) {
      case FaultKind::kNone:
        return false;
      case FaultKind::kFail:
        return true;
      case FaultKind::kDisconnect:
        return call == TransportCall::kImport || call == TransportCall::kPost ||
               call == TransportCall::kComplete;
      default:
        return call == TransportCall::kPost;
    }
  }

  // A registered byte with the value `value`, for the life of the transport.
  absl::StatusOr<uint8_t*> ScratchByte(uint8_t value) {
    MutexLock lock(scratch_mu);
    scratch_bytes.push_back(value);
    uint8_t* byte = &scratch_bytes.back();
    ASSIGN_OR_RETURN(auto region, inner->Register({byte, 1}));
    scratch.push_back(std::move(region));
    return byte;
  }
};

namespace {

using Shared = FaultyTransport::Shared;

class FaultyHandle final : public TransferHandle {
 public:
  // `inner` is null for a transfer that is held back; then `delayed` tells its state.
  FaultyHandle(std::shared_ptr<Shared> shared, std::shared_ptr<Link> link,
               std::unique_ptr<TransferHandle> inner, std::shared_ptr<TransferState> delayed,
               uint8_t* corrupt)
      : shared_(std::move(shared)),
        link_(std::move(link)),
        inner_(std::move(inner)),
        delayed_(std::move(delayed)),
        corrupt_(corrupt) {}
  ~FaultyHandle() override { Cancel(); }

  bool Poll() override {
    MutexLock lock(mu_);
    if (ended_) return true;
    if (delayed_ != nullptr ? !delayed_->ended() : !inner_->Poll()) return false;
    Finish(delayed_ != nullptr ? delayed_->status() : inner_->Wait(Time::max()));
    return true;
  }
  absl::Status Wait(Time deadline) override {
    absl::Status status;
    if (delayed_ != nullptr) {
      if (!delayed_->WaitEnded(deadline, *SteadyClock::Get())) {
        delayed_->End(absl::DeadlineExceededError("held back beyond the deadline of Wait"));
      }
      status = delayed_->status();
    } else {
      status = inner_->Wait(deadline);
    }
    MutexLock lock(mu_);
    if (!ended_) Finish(std::move(status));
    return status_;
  }
  void Cancel() override {
    if (delayed_ != nullptr) {
      delayed_->End(absl::CancelledError("transfer cancelled"));
    } else {
      inner_->Cancel();
    }
  }
  bool Drained() const override {
    return delayed_ != nullptr ? delayed_->drained() : inner_->Drained();
  }

 private:
  void Finish(absl::Status status) REQUIRES(mu_) {
    ended_ = true;
    status_ = std::move(status);
    const Fault fault = shared_->Next(TransportCall::kComplete);
    if (fault.kind == FaultKind::kDisconnect) link_->broken = true;
    if (link_->broken) {
      status_ = absl::UnavailableError("injected disconnect");
    } else if (fault.kind == FaultKind::kFail) {
      status_ = fault.status;
    }
    if (corrupt_ != nullptr && status_.ok()) *corrupt_ ^= 0x10;
  }

  const std::shared_ptr<Shared> shared_;
  const std::shared_ptr<Link> link_;
  const std::unique_ptr<TransferHandle> inner_;
  const std::shared_ptr<TransferState> delayed_;
  uint8_t* const corrupt_;  // a byte that was read and is to be falsified
  Mutex mu_;
  bool ended_ GUARDED_BY(mu_) = false;
  absl::Status status_ GUARDED_BY(mu_);
};

class FaultyPeer final : public Peer {
 public:
  FaultyPeer(std::shared_ptr<Shared> shared, std::unique_ptr<Peer> inner)
      : shared_(std::move(shared)), link_(std::make_shared<Link>()) {
    link_->peer = std::move(inner);
  }
  ~FaultyPeer() override { Close(); }

  absl::StatusOr<std::unique_ptr<RemoteRegion>> Import(absl::string_view exported) override;
  absl::StatusOr<std::unique_ptr<TransferHandle>> Post(absl::Span<const TransferOp> ops,
                                                       Time deadline) override;
  std::string lane() const override { return link_->peer->lane(); }
  bool healthy() const override { return !link_->broken && link_->peer->healthy(); }
  void Close() override;

 private:
  absl::StatusOr<Fault> NextOrFail(TransportCall call);

  const std::shared_ptr<Shared> shared_;
  const std::shared_ptr<Link> link_;
};

absl::StatusOr<Fault> FaultyPeer::NextOrFail(TransportCall call) {
  Fault fault = shared_->Next(call);
  if (fault.kind == FaultKind::kDisconnect) link_->broken = true;
  if (link_->broken) return absl::UnavailableError("injected disconnect");
  if (fault.kind == FaultKind::kFail) return fault.status;
  return fault;
}

absl::StatusOr<std::unique_ptr<RemoteRegion>> FaultyPeer::Import(absl::string_view exported) {
  RETURN_IF_ERROR(NextOrFail(TransportCall::kImport).status());
  ASSIGN_OR_RETURN(auto region, link_->peer->Import(exported));
  return std::make_unique<FaultyRemoteRegion>(std::move(region));
}

absl::StatusOr<std::unique_ptr<TransferHandle>> FaultyPeer::Post(absl::Span<const TransferOp> ops,
                                                                 Time deadline) {
  ASSIGN_OR_RETURN(const Fault fault, NextOrFail(TransportCall::kPost));
  std::vector<TransferOp> inner_ops(ops.begin(), ops.end());
  std::vector<std::shared_ptr<RemoteRegion>> regions;
  for (TransferOp& op : inner_ops) {
    const auto* remote = dynamic_cast<const FaultyRemoteRegion*>(op.remote);
    if (remote == nullptr) return absl::InvalidArgumentError("remote region is not of this peer");
    op.remote = remote->inner().get();
    regions.push_back(remote->inner());
  }
  uint8_t* corrupt = nullptr;
  std::shared_ptr<TransferState> delayed;
  if (fault.kind == FaultKind::kTruncate && !inner_ops.empty()) {
    inner_ops.back().length /= 2;
  } else if (fault.kind == FaultKind::kCorrupt && !inner_ops.empty() &&
             inner_ops.back().length > 0) {
    TransferOp& last = inner_ops.back();
    uint8_t* byte = last.local + last.length - 1;
    if (last.kind == TransferKind::kRead) {
      corrupt = byte;
    } else {
      ASSIGN_OR_RETURN(uint8_t * wrong, shared_->ScratchByte(*byte ^ 0x10));
      TransferOp tail = {last.kind, wrong, 1, last.remote, last.remote_offset + last.length - 1};
      --last.length;
      inner_ops.push_back(tail);
    }
  } else if (fault.kind == FaultKind::kDelay) {
    delayed = std::make_shared<TransferState>();
    delayed->Start();  // in flight: it ends when cancelled, but is not drained before Release
    MutexLock lock(shared_->mu);
    shared_->delayed.push_back({link_, inner_ops, regions, delayed});
  }
  std::unique_ptr<TransferHandle> inner;
  if (delayed == nullptr) {
    ASSIGN_OR_RETURN(inner, link_->peer->Post(inner_ops, deadline));
  }
  return std::make_unique<FaultyHandle>(shared_, link_, std::move(inner), std::move(delayed),
                                        corrupt);
}

void FaultyPeer::Close() {
  std::vector<DelayedTransfer> dropped;
  {
    MutexLock lock(shared_->mu);
    auto mine = std::stable_partition(shared_->delayed.begin(), shared_->delayed.end(),
                                      [this](const DelayedTransfer& d) { return d.link != link_; });
    std::move(mine, shared_->delayed.end(), std::back_inserter(dropped));
    shared_->delayed.erase(mine, shared_->delayed.end());
  }
  for (DelayedTransfer& d : dropped) {
    d.state->End(absl::CancelledError("connection closed"));
    d.state->Drain();
  }
  link_->peer->Close();
}

}  // namespace

FaultyTransport::FaultyTransport(std::unique_ptr<Transport> inner)
    : shared_(std::make_shared<Shared>()) {
  shared_->inner = std::move(inner);
}

FaultyTransport::~FaultyTransport() = default;

void FaultyTransport::Inject(Fault fault) {
  MutexLock lock(shared_->mu);
  shared_->fault = std::move(fault);
  shared_->operations = 0;
  shared_->fired = false;
}

bool FaultyTransport::fired() const {
  MutexLock lock(shared_->mu);
  return shared_->fired;
}

uint64_t FaultyTransport::operations() const {
  MutexLock lock(shared_->mu);
  return shared_->operations;
}

void FaultyTransport::SetHook(std::function<void(TransportCall, uint64_t)> hook) {
  shared_->hook = std::move(hook);
}

size_t FaultyTransport::Release() {
  std::vector<DelayedTransfer> delayed;
  {
    MutexLock lock(shared_->mu);
    delayed.swap(shared_->delayed);
  }
  for (DelayedTransfer& d : delayed) {
    const Time deadline = SteadyClock::Get()->Now() + kReleaseTimeout;
    auto handle = d.link->peer->Post(d.ops, deadline);
    d.state->End(handle.ok() ? (*handle)->Wait(deadline) : handle.status());
    d.state->Drain();
  }
  return delayed.size();
}

std::string FaultyTransport::Address() const {
  return shared_->inner->Address();
}
void FaultyTransport::SetGate(AccessGate* gate) {
  shared_->inner->SetGate(gate);
}
absl::StatusOr<std::string> FaultyTransport::AddressFor(uint64_t subject) {
  return shared_->inner->AddressFor(subject);
}
std::string FaultyTransport::name() const {
  return shared_->inner->name();
}

absl::StatusOr<std::unique_ptr<MemoryRegion>> FaultyTransport::Allocate(uint64_t bytes,
                                                                        bool huge_pages) {
  const Fault fault = shared_->Next(TransportCall::kAllocate);
  if (fault.kind == FaultKind::kFail) return fault.status;
  return shared_->inner->Allocate(bytes, huge_pages);
}

absl::StatusOr<std::unique_ptr<MemoryRegion>> FaultyTransport::Register(
    absl::Span<uint8_t> memory) {
  const Fault fault = shared_->Next(TransportCall::kRegister);
  if (fault.kind == FaultKind::kFail) return fault.status;
  return shared_->inner->Register(memory);
}

absl::StatusOr<std::unique_ptr<Peer>> FaultyTransport::Connect(absl::string_view address,
                                                               Time deadline) {
  const Fault fault = shared_->Next(TransportCall::kConnect);
  if (fault.kind == FaultKind::kFail) return fault.status;
  ASSIGN_OR_RETURN(auto peer, shared_->inner->Connect(address, deadline));
  return std::make_unique<FaultyPeer>(shared_, std::move(peer));
}

}  // namespace oscarkv
