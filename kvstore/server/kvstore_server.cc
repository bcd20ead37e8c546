#include "kvstore/server/kvstore_server.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/auth/security_options.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/rpc/client_security.h"
#include "common/rpc/server.h"
#include "common/status_macros.h"
#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/cluster/etcd_membership.h"
#include "kvstore/cluster/etcd_stub.h"
#include "kvstore/core/kv_node.h"
#include "kvstore/repair/repairer.h"
#include "kvstore/repair/scrubber.h"
#include "kvstore/server/kvstore_service.h"
#include "kvstore/tier/rocksdb_store.h"
#include "kvstore/tier/ssd_tier.h"
#include "transport/access_gate.h"

namespace oscarkv {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr Duration kTickEvery = std::chrono::milliseconds(100);
constexpr Duration kWriteQueueFor = std::chrono::seconds(2);  // at shutdown
// What a node that leaves gives clients to learn of it, and to end their puts.
constexpr Duration kLeaveNotice = std::chrono::milliseconds(300);
constexpr Duration kLeaveBound = std::chrono::seconds(2);
constexpr Duration kPeerConnectTimeout = std::chrono::seconds(2);

// The arena of a node without a transport.
class HostArena {
 public:
  static absl::StatusOr<std::unique_ptr<HostArena>> Map(uint64_t bytes, bool huge_pages) {
    constexpr uint64_t kHuge = 2 << 20;
    const uint64_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = MAP_FAILED;
    if (huge_pages)
      memory = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, kFlags | MAP_HUGETLB, -1, 0);
    if (memory == MAP_FAILED) {
      memory = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, kFlags, -1, 0);
      if (memory != MAP_FAILED && huge_pages) madvise(memory, rounded, MADV_HUGEPAGE);
    }
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("--capacity=", bytes, ": cannot map memory: ", std::strerror(errno)));
    }
    return std::unique_ptr<HostArena>(new HostArena(static_cast<uint8_t*>(memory), bytes, rounded));
  }
  ~HostArena() { munmap(data_, mapped_); }
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;
  absl::Span<uint8_t> span() const { return {data_, bytes_}; }

 private:
  HostArena(uint8_t* data, uint64_t bytes, uint64_t mapped)
      : data_(data), bytes_(bytes), mapped_(mapped) {}
  uint8_t* const data_;
  const uint64_t bytes_, mapped_;
};

// Calls Tick until it is destroyed.
class Ticker {
 public:
  explicit Ticker(KvNode* node) : thread_([this, node] { Run(node); }) {}
  ~Ticker() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }

 private:
  void Run(KvNode* node) {
    for (;;) {
      node->Tick();
      const Time next = SteadyClock::Get()->Now() + kTickEvery;
      MutexLock lock(mu_);
      while (!stop_ && changed_.WaitUntil(mu_, next)) {
      }
      if (stop_) return;
    }
  }
  Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: starts when the rest is there
};

uint64_t RandomSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

std::string NodeName(const KvStoreServerOptions& o) {
  static std::atomic<int> unnamed{0};  // several nodes of one process must differ in their metrics
  if (!o.name.empty()) return o.name;
  return absl::EndsWith(o.listen, ":0") ? absl::StrCat("kvstore-", unnamed++) : o.listen;
}

absl::StatusOr<KvNodeOptions> NodeOptions(const KvStoreServerOptions& o) {
  KvNodeOptions n;
  n.name = NodeName(o);
  ASSIGN_OR_RETURN(n.eviction, ParseEvictionKind(o.eviction));
  n.high_watermark = o.high_watermark;
  n.low_watermark = o.low_watermark;
  n.slab_bytes = o.slab_bytes;
  n.tenant_quota_bytes = o.tenant_quota;
  n.extra_share = o.hot_memory;
  n.session_ttl = o.session_ttl;
  n.max_pin_ttl = o.pin_ttl;
  n.put_ttl = o.put_ttl;
  n.verify_on_put = o.verify_on_put;
  n.tier_wait = o.ssd_wait;
  n.grants = o.data_access == "granted";
  n.seed = RandomSeed();
  return n;
}

absl::StatusOr<std::unique_ptr<Tier>> OpenTier(const KvStoreServerOptions& o,
                                               const std::string& name, KvTierMetrics* metrics) {
  SsdTierOptions tier;
  tier.name = name;
  tier.capacity = o.ssd_capacity;
  RETURN_IF_ERROR(ParseWriteRate(o.ssd_write_rate, &tier.write_rate));
  tier.admit_all = o.ssd_admission == "always";
  tier.tenant_quota = o.ssd_tenant_quota;
  tier.queue_bytes = o.ssd_queue;
  tier.scrub_rate = o.ssd_scrub_rate;
  RocksDbStoreOptions disk;
  disk.path = o.ssd_path;
  disk.memtable_bytes =
      std::clamp<uint64_t>(o.ssd_capacity / tier.generations / 4, 1 << 20, 64 << 20);
  absl::StatusOr<std::unique_ptr<DiskStore>> store = OpenRocksDbStore(disk);
  if (!store.ok()) {
    return absl::Status(store.status().code(),
                        absl::StrCat("--ssd-path=", o.ssd_path, ": ", store.status().message()));
  }
  return SsdTier::Create(tier, *std::move(store), SteadyClock::Get(), metrics);
}

// The sessions of the node are the subjects of the data path.
class NodeGate final : public AccessGate {
 public:
  NodeGate(KvNode* node, bool grants) : node_(node), grants_(grants) {}
  bool Welcome(uint64_t session) override { return node_->TenantOf(session).has_value(); }
  bool Allowed(uint64_t session, bool write, uint64_t offset, uint64_t length) override {
    return !grants_ || node_->MayTouch(session, write, offset, length);
  }

 private:
  KvNode* const node_;
  const bool grants_;
};

}  // namespace

// Destroyed from the last member to the first: no call, no tick reaches what is gone.
struct KvStoreServer::Impl {
  ~Impl() { CloseGate(); }
  void CloseGate() {
    if (gate != nullptr) transport->SetGate(nullptr);
    gate.reset();
  }

  std::unique_ptr<Transport> owned_transport;
  Transport* transport = nullptr;
  std::unique_ptr<KvNodeMetrics> metrics;
  std::unique_ptr<MemoryRegion> region;  // one of these two is the arena
  std::unique_ptr<HostArena> host_arena;
  std::unique_ptr<KvTierMetrics> tier_metrics;
  std::unique_ptr<Tier> tier;  // null: only memory
  std::unique_ptr<KvRepairMetrics> repair_metrics;
  std::unique_ptr<KvNode> node;
  std::unique_ptr<NodeGate> gate;          // null without a transport
  std::unique_ptr<Membership> membership;  // the three are null without repair, resp. scrubbing
  std::unique_ptr<Repairer> repairer;
  std::unique_ptr<Scrubber> scrubber;
  std::unique_ptr<rpc::Guard> guard;
  std::unique_ptr<KvStoreService> service;
  std::unique_ptr<Ticker> ticker;
  std::unique_ptr<rpc::Server> server;
  std::unique_ptr<EtcdRegistration> registration;  // null without etcd
  int port = 0;

  std::string Endpoint(const KvStoreServerOptions& options) const;
  void Register(const KvStoreServerOptions& options, const KvNodeOptions& node_options);
  absl::Status StartRepair(const KvStoreServerOptions& options, const std::string& name,
                           Transport* transport);
  void LeaveStore(Time deadline);
  void EndPuts();
};

// By which clients and other nodes know this one.
std::string KvStoreServer::Impl::Endpoint(const KvStoreServerOptions& options) const {
  if (!options.advertise.empty()) return options.advertise;
  return absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
}

// After the server listens, so that its address is known.
absl::Status KvStoreServer::Impl::StartRepair(const KvStoreServerOptions& options,
                                              const std::string& name, Transport* transport) {
  if (options.nodes.empty() && options.etcd.empty()) return absl::OkStatus();
  RepairOptions repair;
  repair.self = Endpoint(options);
  repair.name = name;
  repair.replicas = options.replicas;
  repair.rate = options.repair_rate;
  repair.interval = options.repair_interval;
  repair.grace = options.repair_grace;
  repair.hot.copies = static_cast<uint32_t>(options.hot_copies);
  repair.hot.reads = options.hot_reads;
  if (!options.etcd.empty()) {
    EtcdOptions etcd;
    etcd.endpoints = options.etcd;
    etcd.prefix = options.etcd_prefix;
    membership = std::make_unique<EtcdMembership>(etcd, EtcdStubs(options.etcd_access));
  } else {
    ASSIGN_OR_RETURN(membership, StaticMembership::Parse(options.nodes));
    const auto list = membership->Current();
    if (std::none_of(list->members.begin(), list->members.end(),
                     [&](const Member& m) { return m.endpoint == repair.self; })) {
      return absl::InvalidArgumentError(
          absl::StrCat("--nodes does not name this node, ", repair.self,
                       ": expected its address among them, or --advertise to say which it is"));
    }
  }
  if (options.repair_rate == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto security, rpc::ClientSecurity::Create(options.security));
  const auto connect = [security, transport, name](const Member& peer, const std::string& tenant) {
    KvClientOptions client;
    client.nodes = {peer.endpoint};
    client.replicas = 1;
    client.name = absl::StrCat("node ", name);
    client.tenant = tenant;
    client.transport = transport;
    client.connect_timeout = kPeerConnectTimeout;
    client.security = security;
    return KvClient::Create(client);
  };
  repairer = std::make_unique<Repairer>(
      repair, node.get(), membership.get(),
      [security](const std::string& peer) { return MakeGrpcStub(peer, security); }, connect,
      SteadyClock::Get(), repair_metrics.get());
  repairer->Start();
  return absl::OkStatus();
}

// After the server listens: whoever finds the record can connect.
void KvStoreServer::Impl::Register(const KvStoreServerOptions& options,
                                   const KvNodeOptions& node_options) {
  EtcdOptions etcd;
  etcd.endpoints = options.etcd;
  etcd.prefix = options.etcd_prefix;
  Member member;
  member.endpoint = Endpoint(options);
  member.zone = options.zone;
  member.capacity_bytes = options.capacity;
  member.weight = options.weight > 0
                      ? options.weight
                      : std::max(1e-3, static_cast<double>(options.capacity) / (1 << 30));
  member.incarnation = node->incarnation();
  const auto report = [this, name = node_options.name](bool registered) {
    if (metrics != nullptr) metrics->registered.With({name}).Set(registered);
  };
  report(false);
  registration =
      std::make_unique<EtcdRegistration>(etcd, member, EtcdStubs(options.etcd_access), report);
}

// Clients stop writing here and puts under way end, within kLeaveBound; copies that go with this
// node are restored elsewhere, until the deadline; then the record goes.
void KvStoreServer::Impl::LeaveStore(Time deadline) {
  scrubber.reset();
  EndPuts();
  if (repairer != nullptr) repairer->Drain(deadline);
  if (registration != nullptr) registration->Leave();
}

void KvStoreServer::Impl::EndPuts() {
  if (registration == nullptr) return;
  const bool known = registration->registered();
  registration->Drain();
  const Time now = SteadyClock::Get()->Now();
  for (Time at = now; known && at < now + kLeaveBound; at = SteadyClock::Get()->Now()) {
    kv::StatsResponse stats;
    node->Handle(kv::StatsRequest{}, &stats).IgnoreError();
    if (at > now + kLeaveNotice && stats.reserved_bytes == 0) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

KvStoreServer::KvStoreServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvStoreServer::~KvStoreServer() {
  Shutdown(Duration(0));
}
int KvStoreServer::port() const {
  return impl_->port;
}

absl::StatusOr<std::unique_ptr<KvStoreServer>> KvStoreServer::Start(
    const KvStoreServerOptions& options, MetricRegistry* registry) {
  if (options.data_path != "ucx") return Start(options, nullptr, nullptr, registry);
  UcxOptions ucx;
  // Nobody asks at an access by shared memory or RDMA.
  ucx.lanes = options.data_access == "granted" ? "tcp" : options.ucx_lanes;
  // UCX opens a port on every device that it may use.
  const bool local = options.ucx_devices.empty() && auth::IsLoopback(options.listen);
  ucx.devices = local ? "lo" : options.ucx_devices;
  ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, CreateUcxTransport(ucx, registry));
  Transport* const used = transport.get();
  return Start(options, std::move(transport), used, registry);
}

absl::StatusOr<std::unique_ptr<KvStoreServer>> KvStoreServer::Start(
    const KvStoreServerOptions& options, Transport* transport, MetricRegistry* registry) {
  return Start(options, nullptr, transport, registry);
}

absl::StatusOr<std::unique_ptr<KvStoreServer>> KvStoreServer::Start(
    const KvStoreServerOptions& options, std::unique_ptr<Transport> owned, Transport* transport,
    MetricRegistry* registry) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(KvNodeOptions node_options, NodeOptions(options));
  auto impl = std::make_unique<Impl>();
  impl->owned_transport = std::move(owned);
  absl::Span<uint8_t> arena;
  if (transport != nullptr) {
    ASSIGN_OR_RETURN(impl->region, transport->Allocate(options.capacity, options.huge_pages));
    arena = impl->region->span();
    node_options.transport_name = transport->name();
    node_options.transport_address = transport->Address();
    node_options.exported_arena = impl->region->Export();
  } else {
    ASSIGN_OR_RETURN(impl->host_arena, HostArena::Map(options.capacity, options.huge_pages));
    arena = impl->host_arena->span();
  }
  if (registry != nullptr) {
    impl->metrics = std::make_unique<KvNodeMetrics>(registry);
    impl->tier_metrics = std::make_unique<KvTierMetrics>(registry);
    impl->repair_metrics = std::make_unique<KvRepairMetrics>(registry);
  }
  if (!options.ssd_path.empty()) {
    ASSIGN_OR_RETURN(impl->tier, OpenTier(options, node_options.name, impl->tier_metrics.get()));
  }
  impl->node =
      std::make_unique<KvNode>(node_options, arena, SteadyClock::Get(), impl->metrics.get(),
                               impl->tier.get(), impl->tier_metrics.get());
  if (transport != nullptr) {
    impl->transport = transport;
    impl->gate = std::make_unique<NodeGate>(impl->node.get(), node_options.grants);
    transport->SetGate(impl->gate.get());
  }
  ASSIGN_OR_RETURN(impl->guard, rpc::Guard::Create(options.security, registry));
  impl->service = std::make_unique<KvStoreService>(impl->node.get(), impl->metrics.get(),
                                                   impl->guard.get(), transport);
  impl->ticker = std::make_unique<Ticker>(impl->node.get());

  rpc::ServerSettings settings;
  settings.listen = options.listen;
  settings.security = options.security;
  settings.max_receive_bytes = settings.max_send_bytes = kMaxMessageBytes;
  ASSIGN_OR_RETURN(impl->server, rpc::Server::Start(settings, impl->service.get()));
  impl->port = impl->server->port();
  if (!options.etcd.empty()) impl->Register(options, node_options);
  RETURN_IF_ERROR(impl->StartRepair(options, node_options.name, transport));
  if (options.scrub_rate > 0) {
    Metric* const scrubbed = registry == nullptr ? nullptr : &impl->repair_metrics->scrubbed.Get();
    impl->scrubber = std::make_unique<Scrubber>(impl->node.get(), options.scrub_rate, scrubbed);
  }
  LogInfo("kvstore node is up",
          {{"node", node_options.name},
           {"port", absl::StrCat(impl->server->port())},
           {"capacity", FormatBytes(arena.size())},
           {"transport", transport == nullptr ? "none" : node_options.transport_name}});
  return std::unique_ptr<KvStoreServer>(new KvStoreServer(std::move(impl)));
}

void KvStoreServer::Shutdown(Duration drain) {
  if (impl_->server == nullptr) return;
  impl_->LeaveStore(SteadyClock::Get()->Now() + drain);
  impl_->repairer.reset();
  impl_->server->Drain();
  impl_->server.reset();
  impl_->ticker.reset();
  impl_->service.reset();
  impl_->CloseGate();
  if (impl_->tier != nullptr) impl_->tier->Shutdown(SteadyClock::Get()->Now() + kWriteQueueFor);
  impl_->node.reset();
  impl_->tier.reset();
  impl_->region.reset();
  impl_->host_arena.reset();
}

}  // namespace oscarkv
