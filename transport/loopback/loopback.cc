// The in-process transport: one thread of the network copies between registered regions, batch by
// batch, in the order of Post. It behaves as a remote one towards its users (asynchronous, bounds
// checked on both sides, peers that vanish), so that the rooms above can be tested without UCX and
// under ThreadSanitizer.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "transport/region_table.h"
#include "transport/transfer_state.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

constexpr uint64_t kPiece = 1 << 20;  // bytes copied between two looks at cancellation

// Exported regions own their memory, so that it stays while it is copied from or to.
struct Region final : RegionCore {
  ~Region() override {
    if (owned) munmap(span.data(), span.size());
  }
  bool owned = false;
};

// What peers can see of a transport.
struct Node {
  uint64_t id = 0;
  RegionTable regions;
  std::atomic<bool> alive{true};
};

struct Connection {
  std::shared_ptr<Node> local, remote;
  std::atomic<bool> closed{false};
  // Batches in the queue or being copied; Close waits until none is left.
  Mutex mu;
  CondVar idle;
  int busy GUARDED_BY(mu) = 0;
};

class LoopbackRemoteRegion final : public RemoteRegion {
 public:
  LoopbackRemoteRegion(uint64_t node, uint64_t id, uint64_t size)
      : node_(node), id_(id), size_(size) {}
  uint64_t size() const override { return size_; }
  uint64_t node() const { return node_; }
  uint64_t id() const { return id_; }

 private:
  const uint64_t node_, id_, size_;
};

struct Op {
  TransferKind kind;
  std::shared_ptr<RegionCore> local_region;  // keeps the memory mapped
  uint8_t* local;
  uint64_t length;
  uint64_t remote_region;
  uint64_t remote_offset;
};

struct Batch {
  std::shared_ptr<TransferState> state = std::make_shared<TransferState>();
  std::shared_ptr<Connection> connection;
  std::vector<Op> ops;
  Time deadline;
};

// Parses "<prefix>:<a>[:<b>...]" into exactly N numbers.
template <size_t N>
std::optional<std::array<uint64_t, N>> ParseNumbers(absl::string_view text,
                                                    absl::string_view prefix) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  if (parts.size() != N + 1 || parts[0] != prefix) return std::nullopt;
  std::array<uint64_t, N> numbers;
  for (size_t i = 0; i < N; ++i) {
    if (!absl::SimpleAtoi(parts[i + 1], &numbers[i])) return std::nullopt;
  }
  return numbers;
}

}  // namespace

// Names the transports and owns the thread that copies.
class LoopbackNetwork {
 public:
  explicit LoopbackNetwork(const Clock* clock) : clock_(clock), thread_([this] { Run(); }) {}
  ~LoopbackNetwork() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      wake_.NotifyAll();
    }
    thread_.join();
  }

  const Clock& clock() const { return *clock_; }

  std::shared_ptr<Node> AddNode() {
    auto node = std::make_shared<Node>();
    MutexLock lock(mu_);
    node->id = ++last_node_;
    nodes_.emplace(node->id, node);
    return node;
  }
  void RemoveNode(const std::shared_ptr<Node>& node) {
    node->alive = false;
    MutexLock lock(mu_);
    nodes_.erase(node->id);
  }
  std::shared_ptr<Node> FindNode(uint64_t id) {
    MutexLock lock(mu_);
    auto it = nodes_.find(id);
    return it == nodes_.end() ? nullptr : it->second;
  }
  void Enqueue(Batch batch) {
    MutexLock lock(mu_);
    queue_.push_back(std::move(batch));
    wake_.NotifyAll();
  }

 private:
  void Run();
  absl::Status Copy(Batch& batch);
  absl::Status CopyOp(Batch& batch, const Op& op);

  const Clock* const clock_;
  Mutex mu_;
  CondVar wake_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::deque<Batch> queue_ GUARDED_BY(mu_);
  uint64_t last_node_ GUARDED_BY(mu_) = 0;
  std::map<uint64_t, std::shared_ptr<Node>> nodes_ GUARDED_BY(mu_);
  std::thread thread_;  // last: starts when the rest is there
};

void LoopbackNetwork::Run() {
  for (;;) {
    Batch batch;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stop_) wake_.Wait(mu_);
      if (queue_.empty()) return;
      batch = std::move(queue_.front());
      queue_.pop_front();
    }
    if (batch.state->Start()) {
      batch.state->End(Copy(batch));
      batch.state->Drain();
    }
    batch.ops.clear();  // lets go of the regions before Close returns
    MutexLock lock(batch.connection->mu);
    --batch.connection->busy;
    batch.connection->idle.NotifyAll();
  }
}

absl::Status LoopbackNetwork::Copy(Batch& batch) {
  for (const Op& op : batch.ops) RETURN_IF_ERROR(CopyOp(batch, op));
  return absl::OkStatus();
}

absl::Status LoopbackNetwork::CopyOp(Batch& batch, const Op& op) {
  Connection& c = *batch.connection;
  for (uint64_t done = 0; done < op.length;) {
    if (batch.state->ended()) return absl::CancelledError("transfer cancelled");
    if (c.closed) return absl::CancelledError("connection closed");
    if (!c.remote->alive) return absl::UnavailableError("loopback peer is gone");
    if (clock_->Now() >= batch.deadline)
      return absl::DeadlineExceededError("transfer deadline passed");
    const std::shared_ptr<RegionCore> remote = c.remote->regions.FindId(op.remote_region);
    if (remote == nullptr) return absl::NotFoundError("the peer no longer exports this region");
    const uint64_t n = std::min(kPiece, op.length - done);
    uint8_t* there = remote->span.data() + op.remote_offset + done;
    uint8_t* here = op.local + done;
    if (op.kind == TransferKind::kRead) {
      std::memmove(here, there, n);
    } else {
      std::memmove(there, here, n);
    }
    done += n;
  }
  return absl::OkStatus();
}

namespace {

class LoopbackHandle final : public TransferHandle {
 public:
  LoopbackHandle(std::shared_ptr<TransferState> state, std::shared_ptr<LoopbackNetwork> network)
      : state_(std::move(state)), network_(std::move(network)) {}
  ~LoopbackHandle() override { Cancel(); }

  bool Poll() override { return state_->ended(); }
  absl::Status Wait(Time deadline) override {
    if (!state_->WaitEnded(deadline, network_->clock())) {
      state_->End(absl::DeadlineExceededError("transfer did not end before the deadline of Wait"));
    }
    return state_->status();
  }
  void Cancel() override { state_->End(absl::CancelledError("transfer cancelled")); }
  bool Drained() const override { return state_->drained(); }

 private:
  const std::shared_ptr<TransferState> state_;
  const std::shared_ptr<LoopbackNetwork> network_;
};

class LoopbackPeer final : public Peer {
 public:
  LoopbackPeer(std::shared_ptr<LoopbackNetwork> network, std::shared_ptr<Connection> connection)
      : network_(std::move(network)), connection_(std::move(connection)) {}
  ~LoopbackPeer() override { Close(); }

  absl::StatusOr<std::unique_ptr<RemoteRegion>> Import(absl::string_view exported) override;
  absl::StatusOr<std::unique_ptr<TransferHandle>> Post(absl::Span<const TransferOp> ops,
                                                       Time deadline) override;
  std::string lane() const override { return "loopback"; }
  bool healthy() const override { return !connection_->closed && connection_->remote->alive; }
  void Close() override;

 private:
  absl::StatusOr<Op> Resolve(const TransferOp& op) const;

  const std::shared_ptr<LoopbackNetwork> network_;
  const std::shared_ptr<Connection> connection_;
};

absl::StatusOr<std::unique_ptr<RemoteRegion>> LoopbackPeer::Import(absl::string_view exported) {
  const auto numbers = ParseNumbers<3>(exported, "loopback-region");
  if (!numbers)
    return absl::InvalidArgumentError("not an exported region of the loopback transport");
  if ((*numbers)[0] != connection_->remote->id) {
    return absl::InvalidArgumentError(absl::StrCat("region of loopback node ", (*numbers)[0],
                                                   " imported over a connection to node ",
                                                   connection_->remote->id));
  }
  return std::make_unique<LoopbackRemoteRegion>((*numbers)[0], (*numbers)[1], (*numbers)[2]);
}

absl::StatusOr<Op> LoopbackPeer::Resolve(const TransferOp& op) const {
  const auto* remote = dynamic_cast<const LoopbackRemoteRegion*>(op.remote);
  if (remote == nullptr || remote->node() != connection_->remote->id) {
    return absl::InvalidArgumentError("remote region was not imported from this peer");
  }
  if (op.remote_offset > remote->size() || op.length > remote->size() - op.remote_offset) {
    return absl::InvalidArgumentError(absl::StrCat("remote range [", op.remote_offset, ", +",
                                                   op.length, ") is outside a region of ",
                                                   remote->size(), " bytes"));
  }
  // The size in the descriptor is the peer's claim; its own table decides.
  const std::shared_ptr<RegionCore> actual = connection_->remote->regions.FindId(remote->id());
  if (actual != nullptr && actual->span.size() != remote->size()) {
    return absl::InvalidArgumentError("exported descriptor disagrees with the peer's region");
  }
  std::shared_ptr<RegionCore> local = connection_->local->regions.FindAddress(op.local, op.length);
  if (local == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "local range of ", op.length, " bytes is not inside a region of this transport"));
  }
  return Op{op.kind, std::move(local), op.local, op.length, remote->id(), op.remote_offset};
}

absl::StatusOr<std::unique_ptr<TransferHandle>> LoopbackPeer::Post(absl::Span<const TransferOp> ops,
                                                                   Time deadline) {
  Batch batch;
  batch.connection = connection_;
  batch.deadline = deadline;
  batch.ops.reserve(ops.size());
  for (const TransferOp& op : ops) {
    ASSIGN_OR_RETURN(Op resolved, Resolve(op));
    batch.ops.push_back(std::move(resolved));
  }
  {
    MutexLock lock(connection_->mu);
    if (connection_->closed) return absl::UnavailableError("connection is closed");
    if (!connection_->remote->alive) return absl::UnavailableError("loopback peer is gone");
    ++connection_->busy;
  }
  auto handle = std::make_unique<LoopbackHandle>(batch.state, network_);
  network_->Enqueue(std::move(batch));
  return handle;
}

void LoopbackPeer::Close() {
  MutexLock lock(connection_->mu);
  connection_->closed = true;
  while (connection_->busy > 0) connection_->idle.Wait(connection_->mu);
}

class LoopbackRegion final : public MemoryRegion {
 public:
  LoopbackRegion(std::shared_ptr<Node> node, std::shared_ptr<Region> region)
      : node_(std::move(node)), region_(std::move(region)) {}
  ~LoopbackRegion() override { node_->regions.Remove(region_->id); }
  absl::Span<uint8_t> span() const override { return region_->span; }
  std::string Export() const override {
    if (!region_->owned) return "";
    return absl::StrCat("loopback-region:", node_->id, ":", region_->id, ":", region_->span.size());
  }

 private:
  const std::shared_ptr<Node> node_;
  const std::shared_ptr<Region> region_;
};

class LoopbackTransport final : public Transport {
 public:
  explicit LoopbackTransport(std::shared_ptr<LoopbackNetwork> network)
      : network_(std::move(network)), node_(network_->AddNode()) {}
  ~LoopbackTransport() override { network_->RemoveNode(node_); }

  std::string Address() const override { return absl::StrCat("loopback:", node_->id); }
  void SetGate(AccessGate*) override {}
  absl::StatusOr<std::string> AddressFor(uint64_t) override { return Address(); }
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(uint64_t bytes, bool huge_pages) override {
    if (bytes == 0) return absl::InvalidArgumentError("cannot allocate a region of 0 bytes");
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot map ", bytes, " bytes"));
    }
    return AddRegion({static_cast<uint8_t*>(memory), bytes}, /*owned=*/true);
  }
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Register(absl::Span<uint8_t> memory) override {
    if (memory.empty()) return absl::InvalidArgumentError("cannot register an empty region");
    return AddRegion(memory, /*owned=*/false);
  }
  absl::StatusOr<std::unique_ptr<Peer>> Connect(absl::string_view address, Time deadline) override {
    const auto numbers = ParseNumbers<1>(address, "loopback");
    if (!numbers) return absl::InvalidArgumentError("not an address of the loopback transport");
    std::shared_ptr<Node> remote = network_->FindNode((*numbers)[0]);
    if (remote == nullptr) return absl::UnavailableError(absl::StrCat("no transport at ", address));
    auto connection = std::make_shared<Connection>();
    connection->local = node_;
    connection->remote = std::move(remote);
    return std::make_unique<LoopbackPeer>(network_, std::move(connection));
  }
  std::string name() const override { return "loopback"; }

 private:
  std::unique_ptr<MemoryRegion> AddRegion(absl::Span<uint8_t> span, bool owned) {
    auto region = std::make_shared<Region>();
    region->id = next_region_.fetch_add(1);
    region->span = span;
    region->owned = owned;
    node_->regions.Add(region);
    return std::make_unique<LoopbackRegion>(node_, std::move(region));
  }

  const std::shared_ptr<LoopbackNetwork> network_;
  const std::shared_ptr<Node> node_;
  std::atomic<uint64_t> next_region_{1};
};

}  // namespace

std::shared_ptr<LoopbackNetwork> CreateLoopbackNetwork(const Clock* clock) {
  return std::make_shared<LoopbackNetwork>(clock);
}

std::unique_ptr<Transport> CreateLoopbackTransport(std::shared_ptr<LoopbackNetwork> network) {
  return std::make_unique<LoopbackTransport>(std::move(network));
}

}  // namespace oscarkv
