// The UCX transport. What UCX 1.13 can and cannot do decides its shape:
//
// - Endpoints that notice dead peers cannot use shared memory, and endpoints on shared memory
// notice nothing. Hence one context
//   and worker for each lane class instead of one for all, and an own liveness socket
//   (transport/liveness.h) for shared memory.
// - On shared memory, only segments that UCX allocated itself are read without the owner's help.
// Hence regions that are exported
//   come from Allocate, and Register is for the local side only.
// - Over TCP, UCX emulates gets and puts, and the target aborts when the other side is killed
// half-way. Hence active messages
//   there (transport/am/), in pieces that UCX sends eagerly and without copying.
// - Over RDMA, gets and puts are real and endpoints notice failures: the one-sided lane without the
// liveness socket. Not
//   exercised on machines without such devices; its logic is tested over a fake engine.
//
// Connect tries shared memory (same host, and proved by reading a word of the peer's), then RDMA,
// then TCP. A peer on this host that is not reached over shared memory although both sides have it
// is logged and counted.

#include <sys/mman.h>
#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "transport/am/lane.h"
#include "transport/descriptors.h"
#include "transport/liveness.h"
#include "transport/metrics.h"
#include "transport/one_sided/lane.h"
#include "transport/transport.h"
#include "transport/ucx/am_engine.h"
#include "transport/ucx/handles.h"
#include "transport/ucx/lanes.h"
#include "transport/ucx/rma_engine.h"

namespace oscarkv {
namespace {

// A region of this node.
struct Region final : RegionCore {
  ~Region() override {
    if (mapped != nullptr) munmap(mapped, mapped_bytes);
  }
  RegionTrailer* trailer() {
    return reinterpret_cast<RegionTrailer*>(span.data() + TrailerOffset(span.size()));
  }

  std::string descriptor;  // empty: not exported
  // Exactly one of the next two owns an allocated region's memory.
  std::unique_ptr<UcxMemory> shared;
  void* mapped = nullptr;
  uint64_t mapped_bytes = 0;
  std::unique_ptr<UcxMemory> rdma;  // goes before what it registers: declared last
};

bool HasRdmaDevices() {
  std::error_code error;
  const std::filesystem::directory_iterator devices("/sys/class/infiniband", error);
  return !error && devices != std::filesystem::directory_iterator();
}

// The kernel's boot id; random where it cannot be read, which means: no peer is on this host.
HostId ReadHostId() {
  HostId id{};
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  if (!std::getline(file, text) || text.empty()) {
    const uint64_t halves[2] = {RandomId(), RandomId()};
    std::memcpy(id.data(), halves, sizeof(halves));
    return id;
  }
  size_t nibble = 0;
  for (char c : text) {
    if (!std::isxdigit(static_cast<unsigned char>(c)) || nibble == 2 * id.size()) continue;
    const int value = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
    id[nibble / 2] = static_cast<uint8_t>(id[nibble / 2] << 4 | value);
    ++nibble;
  }
  return id;
}

// What a transport, its regions and its peers share.
class Node {
 public:
  Node(const UcxOptions& options, MetricRegistry* registry)
      : options_(options), metrics_(registry), instance_(RandomId()), host_(ReadHostId()) {
    const uint64_t halves[2] = {RandomId(), RandomId()};
    std::memcpy(secret_.data(), halves, sizeof(halves));
  }
  ~Node() { Stop(); }

  absl::Status Init();
  void Stop() {
    for (OneSidedLane* lane : {shm_.get(), rdma_.get()}) {
      if (lane != nullptr) lane->Stop();
    }
    if (tcp_ != nullptr) tcp_->Stop();
  }

  absl::StatusOr<std::shared_ptr<Region>> Allocate(uint64_t bytes, bool huge_pages);
  absl::StatusOr<std::shared_ptr<Region>> Register(absl::Span<uint8_t> memory);
  absl::StatusOr<std::shared_ptr<LaneConnection>> Connect(const NodeAddress& peer, Time deadline);
  void Remove(Region* region) {
    regions_.Remove(region->id);
    // Who imports it from now on, or finds another segment under its number, is told so.
    if (!region->descriptor.empty()) region->trailer()->token = 0;
  }

  const std::string& address() const { return address_; }
  void SetGate(AccessGate* gate) {
    if (tcp_ != nullptr) tcp_->SetGate(gate);
  }
  absl::StatusOr<std::string> AddressFor(uint64_t subject) const {
    NodeAddress address = address_parts_;
    if (tcp_ != nullptr) {
      ASSIGN_OR_RETURN(address.secret, tcp_->Admit(subject));
    }
    return Encode(address);
  }
  const RegionTable& regions() const { return regions_; }

 private:
  absl::Status AddLane(LaneClass lane, const std::string& tls);
  void ReportFallback(const std::vector<std::string>& reasons) const;
  absl::Status MapMemory(Region* region, uint64_t bytes, bool huge_pages);
  absl::Status Export(Region* region);
  absl::StatusOr<std::shared_ptr<LaneConnection>> ConnectOneSided(OneSidedLane* lane,
                                                                  const LaneAddress& theirs,
                                                                  uint64_t peer_instance);

  const UcxOptions options_;
  const TransportMetrics metrics_;
  const uint64_t instance_;
  const HostId host_;
  NodeSecret secret_{};
  NodeAddress address_parts_;
  std::string address_;
  std::string lane_names_;
  std::atomic<uint64_t> next_region_{1};

  std::shared_ptr<UcxContext> shm_context_, rdma_context_, tcp_context_;
  RegionTable regions_;
  std::shared_ptr<Region> probe_;  // its descriptor is part of the address
  std::unique_ptr<OneSidedLane> shm_, rdma_;
  std::unique_ptr<AmLane> tcp_;
};

absl::Status Node::AddLane(LaneClass lane, const std::string& tls) {
  UcxContext::Settings settings = {{"TLS", tls}};
  if (lane == LaneClass::kShm) {
    // Nothing but shared segments will do, and "none left" must be an error instead of private
    // memory.
    settings.emplace_back("ALLOC_PRIO", "md:sysv,md:posix");
  } else if (!options_.devices.empty()) {
    settings.emplace_back("NET_DEVICES", options_.devices);
  }
  if (lane == LaneClass::kTcp) {
    // One connection for each peer: messages stay in order, and no second network device is
    // connected in vain.
    settings.emplace_back("MAX_EAGER_LANES", "1");
    settings.emplace_back("MAX_RNDV_LANES", "1");
    // A message of kMaxParts parts and the two headers, without copying.
    settings.emplace_back("MAX_IOV", absl::StrCat(kMaxParts + 4));
  }
  const uint64_t features = lane == LaneClass::kTcp ? UCP_FEATURE_AM : UCP_FEATURE_RMA;
  ASSIGN_OR_RETURN(auto context, UcxContext::Create(features | UCP_FEATURE_WAKEUP, settings));
  const TransportMetrics::Lane* metrics = &metrics_.lane(lane);
  switch (lane) {
    case LaneClass::kTcp: {
      tcp_context_ = context;
      ASSIGN_OR_RETURN(auto engine, CreateUcxAmEngine(context));
      tcp_ =
          std::make_unique<AmLane>(std::move(engine), secret_, &regions_, metrics, options_.spin);
      break;
    }
    case LaneClass::kShm: {
      // Whether there are segments to be had, before anything is built on them.
      RETURN_IF_ERROR(UcxMemory::Allocate(context, kTrailerBytes).status());
      ASSIGN_OR_RETURN(auto engine, CreateUcxRmaEngine(context, /*shared_memory=*/true));
      ASSIGN_OR_RETURN(auto listener, LivenessListener::Create(instance_));
      shm_context_ = context;
      shm_ = std::make_unique<OneSidedLane>(lane, std::move(engine), std::move(listener), metrics,
                                            options_.spin, options_.peer_timeout);
      break;
    }
    case LaneClass::kRdma: {
      rdma_context_ = context;
      ASSIGN_OR_RETURN(auto engine, CreateUcxRmaEngine(context, /*shared_memory=*/false));
      rdma_ = std::make_unique<OneSidedLane>(lane, std::move(engine), nullptr, metrics,
                                             options_.spin, options_.peer_timeout);
      break;
    }
  }
  return absl::OkStatus();
}

absl::Status Node::Init() {
  ASSIGN_OR_RETURN(const std::vector<LaneChoice> choices,
                   ParseLanes(options_.lanes, HasRdmaDevices()));
  std::vector<std::string> names;
  for (const LaneChoice& choice : choices) {
    absl::Status added;
    for (const std::string& tls : choice.tls) {
      added = AddLane(choice.lane, tls);
      if (added.ok()) break;
    }
    if (added.ok()) {
      names.emplace_back(LaneClassName(choice.lane));
      continue;
    }
    absl::Status error(added.code(), absl::StrCat("lane ", LaneClassName(choice.lane), " (",
                                                  absl::StrJoin(choice.tls, " or "),
                                                  ") cannot be used here: ", added.message()));
    // What was asked for by name must be there; "auto" makes do with what is, loudly.
    if (options_.lanes != "auto") return error;
    LogWarn("transport: a lane is missing", {{"error", error.ToString()}});
  }
  if (names.empty())
    return absl::UnavailableError("no lane of the transport can be used on this host");
  lane_names_ = absl::StrJoin(names, ",");

  ASSIGN_OR_RETURN(probe_, Allocate(1, /*huge_pages=*/false));
  NodeAddress address;
  address.instance = instance_;
  address.secret = secret_;
  address.host = host_;
  if (shm_ != nullptr)
    address.lanes.push_back({LaneClass::kShm, shm_->address(), probe_->descriptor});
  if (rdma_ != nullptr)
    address.lanes.push_back({LaneClass::kRdma, rdma_->address(), probe_->descriptor});
  if (tcp_ != nullptr) address.lanes.push_back({LaneClass::kTcp, tcp_->address(), ""});
  ASSIGN_OR_RETURN(address_, Encode(address));
  address_parts_ = std::move(address);
  return absl::OkStatus();
}

absl::Status Node::MapMemory(Region* region, uint64_t bytes, bool huge_pages) {
  const uint64_t with_trailer = TrailerOffset(bytes) + kTrailerBytes;
  uint8_t* data = nullptr;
  if (shm_context_ != nullptr) {
    // UCX takes huge pages by itself where they are reserved and the region is large.
    ASSIGN_OR_RETURN(region->shared, UcxMemory::Allocate(shm_context_, with_trailer));
    data = region->shared->data();
  } else {
    void* memory =
        mmap(nullptr, with_trailer, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
      return absl::ResourceExhaustedError(absl::StrCat("cannot map ", with_trailer, " bytes"));
    region->mapped = memory;
    region->mapped_bytes = with_trailer;
    data = static_cast<uint8_t*>(memory);
  }
  region->span = {data, bytes};
  // A wish: the kernel may have transparent huge pages switched off.
  if (huge_pages) madvise(data, with_trailer, MADV_HUGEPAGE);
  if (rdma_context_ != nullptr) {
    ASSIGN_OR_RETURN(region->rdma, UcxMemory::Register(rdma_context_, {data, with_trailer}));
  }
  return absl::OkStatus();
}

absl::Status Node::Export(Region* region) {
  region->token = RandomId();
  RegionTrailer trailer;
  trailer.id = region->id;
  trailer.token = region->token;
  trailer.size = region->span.size();
  *region->trailer() = trailer;
  RegionDescriptor descriptor;
  descriptor.instance = instance_;
  descriptor.id = region->id;
  descriptor.token = region->token;
  descriptor.size = region->span.size();
  const auto base = reinterpret_cast<uint64_t>(region->span.data());
  if (region->shared != nullptr) {
    ASSIGN_OR_RETURN(std::string rkey, region->shared->PackKey());
    descriptor.keys.push_back({LaneClass::kShm, base, std::move(rkey)});
  }
  if (region->rdma != nullptr) {
    ASSIGN_OR_RETURN(std::string rkey, region->rdma->PackKey());
    descriptor.keys.push_back({LaneClass::kRdma, base, std::move(rkey)});
  }
  ASSIGN_OR_RETURN(region->descriptor, Encode(descriptor));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Region>> Node::Allocate(uint64_t bytes, bool huge_pages) {
  constexpr uint64_t kLargest = uint64_t{1} << 46;
  if (bytes == 0 || bytes > kLargest) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot allocate a region of ", bytes, " bytes: 1 to ", kLargest));
  }
  auto region = std::make_shared<Region>();
  region->id = next_region_.fetch_add(1);
  RETURN_IF_ERROR(MapMemory(region.get(), bytes, huge_pages));
  RETURN_IF_ERROR(Export(region.get()));
  regions_.Add(region);
  return region;
}

absl::StatusOr<std::shared_ptr<Region>> Node::Register(absl::Span<uint8_t> memory) {
  if (memory.empty()) return absl::InvalidArgumentError("cannot register an empty region");
  auto region = std::make_shared<Region>();
  region->id = next_region_.fetch_add(1);
  region->span = memory;
  if (rdma_context_ != nullptr) {
    ASSIGN_OR_RETURN(region->rdma, UcxMemory::Register(rdma_context_, memory));
  }
  regions_.Add(region);
  return region;
}

absl::StatusOr<std::shared_ptr<LaneConnection>> Node::ConnectOneSided(OneSidedLane* lane,
                                                                      const LaneAddress& theirs,
                                                                      uint64_t peer_instance) {
  ASSIGN_OR_RETURN(const RegionDescriptor probe, DecodeRegionDescriptor(theirs.probe));
  UniqueFd liveness;
  if (theirs.lane == LaneClass::kShm) {
    ASSIGN_OR_RETURN(liveness, ConnectLiveness(peer_instance));
  }
  return lane->Connect(theirs.worker, probe, std::move(liveness));
}

void Node::ReportFallback(const std::vector<std::string>& reasons) const {
  metrics_.degraded().Increment();
  LogWarn("transport: connected, but not over the fastest lane",
          {{"failed", absl::StrJoin(reasons, "; ")}});
}

absl::StatusOr<std::shared_ptr<LaneConnection>> Node::Connect(const NodeAddress& peer,
                                                              Time deadline) {
  const bool same_host = peer.host == host_;
  std::vector<std::string> names, reasons;
  // In the order of LaneClass, which is the order of preference.
  for (LaneClass lane_class : {LaneClass::kShm, LaneClass::kRdma, LaneClass::kTcp}) {
    const auto theirs =
        std::find_if(peer.lanes.begin(), peer.lanes.end(),
                     [lane_class](const LaneAddress& l) { return l.lane == lane_class; });
    if (theirs == peer.lanes.end()) continue;
    names.emplace_back(LaneClassName(lane_class));
    if (lane_class == LaneClass::kTcp && tcp_ != nullptr) {
      auto connection = tcp_->Connect(theirs->worker, peer.secret, deadline);
      if (connection.ok() && !reasons.empty()) ReportFallback(reasons);
      if (connection.ok()) return connection;
      reasons.push_back(absl::StrCat("tcp: ", connection.status().message()));
      if (absl::IsDeadlineExceeded(connection.status())) return connection.status();
    }
    OneSidedLane* lane = lane_class == LaneClass::kShm    ? shm_.get()
                         : lane_class == LaneClass::kRdma ? rdma_.get()
                                                          : nullptr;
    if (lane == nullptr || (lane_class == LaneClass::kShm && !same_host)) continue;
    auto connection = ConnectOneSided(lane, *theirs, peer.instance);
    if (connection.ok() && !reasons.empty()) ReportFallback(reasons);
    if (connection.ok()) return connection;
    reasons.push_back(absl::StrCat(LaneClassName(lane_class), ": ", connection.status().message()));
  }
  return absl::UnavailableError(absl::StrCat(
      "no lane to the peer works; ours: ", lane_names_, "; the peer's: ", absl::StrJoin(names, ","),
      same_host ? " on this host" : " on another host", reasons.empty() ? "" : "; ",
      absl::StrJoin(reasons, "; ")));
}

class UcxRegion final : public MemoryRegion {
 public:
  UcxRegion(std::shared_ptr<Node> node, std::shared_ptr<Region> region)
      : node_(std::move(node)), region_(std::move(region)) {}
  ~UcxRegion() override { node_->Remove(region_.get()); }
  absl::Span<uint8_t> span() const override { return region_->span; }
  std::string Export() const override { return region_->descriptor; }

 private:
  const std::shared_ptr<Node> node_;
  const std::shared_ptr<Region> region_;
};

class UcxRemoteRegion final : public RemoteRegion {
 public:
  UcxRemoteRegion(std::shared_ptr<LaneConnection> connection, std::shared_ptr<RemoteCore> core)
      : connection_(std::move(connection)), core_(std::move(core)) {}
  uint64_t size() const override { return core_->size; }
  const std::shared_ptr<LaneConnection>& connection() const { return connection_; }
  const std::shared_ptr<RemoteCore>& core() const { return core_; }

 private:
  const std::shared_ptr<LaneConnection> connection_;
  const std::shared_ptr<RemoteCore> core_;
};

class UcxHandle final : public TransferHandle {
 public:
  UcxHandle(std::shared_ptr<Node> node, std::shared_ptr<LaneConnection> connection,
            std::shared_ptr<TransferState> state)
      : node_(std::move(node)), connection_(std::move(connection)), state_(std::move(state)) {}
  ~UcxHandle() override { Cancel(); }
  bool Poll() override { return state_->ended(); }
  absl::Status Wait(Time deadline) override {
    if (!connection_->Await(*state_, deadline)) {
      EndEarly(absl::DeadlineExceededError("transfer did not end before the deadline of Wait"));
    }
    return state_->status();
  }
  void Cancel() override {
    if (!state_->ended()) EndEarly(absl::CancelledError("transfer cancelled"));
  }
  bool Drained() const override { return state_->drained(); }

 private:
  void EndEarly(absl::Status status) {
    if (state_->End(std::move(status))) connection_->Sweep();
  }
  const std::shared_ptr<Node> node_;  // owns the lane that the connection belongs to
  const std::shared_ptr<LaneConnection> connection_;
  const std::shared_ptr<TransferState> state_;
};

class UcxPeer final : public Peer {
 public:
  UcxPeer(std::shared_ptr<Node> node, std::shared_ptr<LaneConnection> connection, uint64_t instance)
      : node_(std::move(node)), connection_(std::move(connection)), instance_(instance) {}
  ~UcxPeer() override { Close(); }

  absl::StatusOr<std::unique_ptr<RemoteRegion>> Import(absl::string_view exported) override {
    ASSIGN_OR_RETURN(const RegionDescriptor descriptor, DecodeRegionDescriptor(exported));
    if (descriptor.instance != instance_) {
      return absl::InvalidArgumentError(
          "this region belongs to another node than the peer (or to one before its restart)");
    }
    ASSIGN_OR_RETURN(std::shared_ptr<RemoteCore> core, connection_->Import(descriptor));
    return std::make_unique<UcxRemoteRegion>(connection_, std::move(core));
  }
  absl::StatusOr<std::unique_ptr<TransferHandle>> Post(absl::Span<const TransferOp> ops,
                                                       Time deadline) override;
  std::string lane() const override { return connection_->transports(); }
  bool healthy() const override { return connection_->healthy(); }
  void Close() override { connection_->Close(); }

 private:
  absl::StatusOr<ResolvedOp> Resolve(const TransferOp& op) const;

  const std::shared_ptr<Node> node_;
  const std::shared_ptr<LaneConnection> connection_;
  const uint64_t instance_;
};

absl::StatusOr<ResolvedOp> UcxPeer::Resolve(const TransferOp& op) const {
  const auto* remote = dynamic_cast<const UcxRemoteRegion*>(op.remote);
  if (remote == nullptr || remote->connection() != connection_) {
    return absl::InvalidArgumentError("remote region was not imported from this peer");
  }
  if (op.remote_offset > remote->size() || op.length > remote->size() - op.remote_offset) {
    return absl::InvalidArgumentError(absl::StrCat("remote range [", op.remote_offset, ", +",
                                                   op.length, ") is outside a region of ",
                                                   remote->size(), " bytes"));
  }
  std::shared_ptr<RegionCore> local = node_->regions().FindAddress(op.local, op.length);
  if (local == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "local range of ", op.length, " bytes is not inside a region of this transport"));
  }
  return ResolvedOp{op.kind,          op.local,         op.length,
                    op.remote_offset, std::move(local), remote->core()};
}

absl::StatusOr<std::unique_ptr<TransferHandle>> UcxPeer::Post(absl::Span<const TransferOp> ops,
                                                              Time deadline) {
  std::vector<ResolvedOp> resolved;
  resolved.reserve(ops.size());
  for (const TransferOp& op : ops) {
    ASSIGN_OR_RETURN(ResolvedOp r, Resolve(op));
    resolved.push_back(std::move(r));
  }
  if (!healthy()) return absl::UnavailableError("connection is broken or closed");
  auto transfer =
      std::make_shared<Transfer>(std::move(resolved), deadline, SteadyClock::Get()->Now());
  auto handle = std::make_unique<UcxHandle>(node_, connection_, transfer->state);
  connection_->Submit(std::move(transfer));
  return handle;
}

class UcxTransport final : public Transport {
 public:
  explicit UcxTransport(std::shared_ptr<Node> node) : node_(std::move(node)) {}
  // Regions and peers that outlive it stay valid; their transfers end with kUnavailable.
  ~UcxTransport() override { node_->Stop(); }

  std::string Address() const override { return node_->address(); }
  void SetGate(AccessGate* gate) override { node_->SetGate(gate); }
  absl::StatusOr<std::string> AddressFor(uint64_t subject) override {
    return node_->AddressFor(subject);
  }
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(uint64_t bytes, bool huge_pages) override {
    ASSIGN_OR_RETURN(auto region, node_->Allocate(bytes, huge_pages));
    return std::make_unique<UcxRegion>(node_, std::move(region));
  }
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Register(absl::Span<uint8_t> memory) override {
    ASSIGN_OR_RETURN(auto region, node_->Register(memory));
    return std::make_unique<UcxRegion>(node_, std::move(region));
  }
  absl::StatusOr<std::unique_ptr<Peer>> Connect(absl::string_view address, Time deadline) override {
    ASSIGN_OR_RETURN(const NodeAddress peer, DecodeNodeAddress(address));
    ASSIGN_OR_RETURN(auto connection, node_->Connect(peer, deadline));
    LogInfo("transport: connected",
            {{"lane", std::string(LaneClassName(connection->lane_class()))},
             {"transports", connection->transports()},
             {"peer", absl::StrCat(absl::Hex(peer.instance, absl::kZeroPad16))}});
    return std::make_unique<UcxPeer>(node_, std::move(connection), peer.instance);
  }
  std::string name() const override { return "ucx"; }

 private:
  const std::shared_ptr<Node> node_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options,
                                                              MetricRegistry* metrics) {
  auto node = std::make_shared<Node>(options, metrics);
  RETURN_IF_ERROR(node->Init());
  return std::make_unique<UcxTransport>(std::move(node));
}

std::string UcxVersion() {
  return ucp_get_version_string();
}

}  // namespace oscarkv
