// Fault sweeps over put and get: the n-th operation of the transport, or the n-th call, fails, for
// every n. Whatever happens: no call hangs, nobody is told that a block is stored or read that is
// not, no half-written block is visible, and when the client is gone and the TTLs have passed the
// nodes hold nothing but whole blocks.
#include <gtest/gtest.h>

#include <map>

#include "client_support.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/core/local_stub.h"
#include "tests/fakes/faulty_stub.h"
#include "tests/fakes/faulty_transport.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers

constexpr uint64_t kSize = 6000;
constexpr int kBlocks = 20;
constexpr Duration kShort =
    std::chrono::milliseconds(100);  // only where a transfer never ends by itself

constexpr Duration kLong = std::chrono::seconds(60);

class TwoNodes {
 public:
  explicit TwoNodes(bool with_transport, int replicas = 1)
      : with_transport_(with_transport), replicas_(replicas) {
    for (int i = 0; i < 2; ++i) {
      KvNodeOptions o;
      o.seed = i + 1;
      o.slab_bytes = 64 << 10;
      o.session_ttl =
          std::chrono::seconds(1000);  // of the fake clock, which does not move during a scenario
      absl::Span<uint8_t> arena;
      if (with_transport) {
        node_transports_.push_back(CreateLoopbackTransport(network_));
        regions_.push_back(*node_transports_.back()->Allocate(1 << 20, false));
        arena = regions_.back()->span();
        o.transport_name = node_transports_.back()->name();
        o.transport_address = node_transports_.back()->Address();
        o.exported_arena = regions_.back()->Export();
      } else {
        plain_.emplace_back(1 << 20);
        arena = absl::MakeSpan(plain_.back());
      }
      nodes_[i] = std::make_unique<KvNode>(o, arena, &clock_, nullptr);
    }
  }

  absl::StatusOr<std::unique_ptr<KvClient>> NewClient(Transport* transport, StubFaults* faults) {
    KvClientOptions o;
    o.nodes = {"a:1", "b:2"};
    o.replicas = replicas_;
    o.transport = transport;
    o.connect_timeout = std::chrono::seconds(5);
    return CreateKvClient(o, [this, faults](const std::string& node) -> std::unique_ptr<KvStub> {
      auto stub = std::make_unique<LocalStub>(nodes_[node == "b:2"].get());
      if (faults == nullptr) return stub;
      return faults->Wrap(std::move(stub));
    });
  }
  std::unique_ptr<Transport> NewTransport() {
    return with_transport_ ? CreateLoopbackTransport(network_) : nullptr;
  }
  kv::StatsResponse Stats(int i) {
    kv::StatsResponse s;
    EXPECT_TRUE(nodes_[i]->Handle(kv::StatsRequest{}, &s).ok());
    return s;
  }
  void PassTtls() {
    clock_.Advance(std::chrono::seconds(2000));
    for (const auto& node : nodes_) node->Tick();
    clock_.Advance(std::chrono::seconds(2000));
    for (const auto& node : nodes_) node->Tick();
  }

 private:
  const bool with_transport_;
  const int replicas_;
  FakeClock clock_;
  std::shared_ptr<LoopbackNetwork> network_ = CreateLoopbackNetwork();
  std::vector<std::unique_ptr<Transport>> node_transports_;
  std::vector<std::unique_ptr<MemoryRegion>> regions_;
  std::vector<std::vector<uint8_t>> plain_;
  std::unique_ptr<KvNode> nodes_[2];
};

// What the client was told, by block.
struct Told {
  absl::Status put = absl::UnknownError("not asked");
  absl::Status get = absl::UnknownError("not asked");
};

// Puts and reads a chain, each call within `patience`. `buffer` has room for two chains.
std::map<BlockKey, Told> Scenario(KvClient* client, const std::vector<BlockSpec>& specs,
                                  uint8_t* buffer, Duration patience) {
  std::map<BlockKey, Told> told;
  const std::vector<absl::Status> put = PutAll(client, specs, buffer, In(patience));
  for (size_t i = 0; i < specs.size(); ++i) told[specs[i].key].put = put[i];
  std::vector<BlockKey> chain;
  for (const BlockSpec& s : specs) chain.push_back(s.key);
  const auto matched = client->Match(chain, In(patience));
  EXPECT_TRUE(matched.ok());
  uint8_t* const to = buffer + specs.size() * kSize;
  std::memset(to, 0, specs.size() * kSize);
  const std::vector<absl::Status> get = client->Get(RequestsOf(specs, to), In(patience), nullptr);
  for (size_t i = 0; i < specs.size(); ++i) {
    told[specs[i].key].get = get[i];
    if (get[i].ok()) {
      EXPECT_EQ(std::string(reinterpret_cast<char*>(to) + i * kSize, kSize),
                Bytes(specs[i].key, kSize))
          << "a get lied";
    }
  }
  return told;
}

// A second, healthy client looks at what is there; then all ends.
void Inspect(TwoNodes* nodes, const std::vector<BlockSpec>& specs,
             const std::map<BlockKey, Told>& told) {
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(nodes->Stats(i).pinned_bytes, 0u) << "the session is closed";
  const std::unique_ptr<Transport> transport = nodes->NewTransport();
  auto client = nodes->NewClient(transport.get(), nullptr);
  ASSERT_TRUE(client.ok()) << client.status();
  Buffer buffer(transport.get(), specs.size() * kSize);
  const auto statuses = (*client)->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr);
  std::vector<BlockKey> keys, placements;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Told& t = told.at(specs[i].key);
    const bool erased = absl::IsDataLoss(t.get);
    if (t.put.ok() && !erased) {
      EXPECT_TRUE(statuses[i].ok()) << "a put lied: " << statuses[i];
    }
    EXPECT_TRUE(statuses[i].ok() || absl::IsNotFound(statuses[i]))
        << "half visible: " << statuses[i];
    if (statuses[i].ok()) {
      EXPECT_EQ(std::string(reinterpret_cast<char*>(buffer.data()) + i * kSize, kSize),
                Bytes(specs[i].key, kSize));
    }
    keys.push_back(specs[i].key);
    placements.push_back(specs[i].placement);
  }
  ASSERT_TRUE((*client)->Erase(keys, placements, Soon()).ok());
  client->reset();
  nodes->PassTtls();
  for (int i = 0; i < 2; ++i) {
    const kv::StatsResponse s = nodes->Stats(i);
    EXPECT_EQ(s.used_bytes, 0u);
    EXPECT_EQ(s.reserved_bytes, 0u);
    EXPECT_EQ(s.quarantined_bytes, 0u);
    EXPECT_EQ(s.sessions, 0u);
  }
}

struct TransportCase {
  const char* name;
  FaultKind kind;
};
class TransportSweep : public testing::TestWithParam<TransportCase> {};
std::string TransportCaseName(const testing::TestParamInfo<TransportCase>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Kinds, TransportSweep,
                         testing::Values(TransportCase{"Fail", FaultKind::kFail},
                                         TransportCase{"Delay", FaultKind::kDelay},
                                         TransportCase{"Truncate", FaultKind::kTruncate},
                                         TransportCase{"Corrupt", FaultKind::kCorrupt},
                                         TransportCase{"Disconnect", FaultKind::kDisconnect}),
                         TransportCaseName);

TEST_P(TransportSweep, EveryOperation) {
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, kBlocks), kSize);
  bool beyond_the_last = false;
  int fired = 0;
  for (uint64_t n = 0; !beyond_the_last; ++n) {
    SCOPED_TRACE(testing::Message() << "operation " << n);
    ASSERT_LT(n, 2000u);
    TwoNodes nodes(true);
    FaultyTransport transport(nodes.NewTransport());
    Buffer buffer(&transport, 2 * kBlocks * kSize);
    transport.Inject({.at = n, .kind = GetParam().kind});
    auto client = nodes.NewClient(&transport, nullptr);
    ASSERT_TRUE(client.ok()) << client.status();
    const bool delay = GetParam().kind == FaultKind::kDelay;
    const auto told = Scenario(client->get(), specs, buffer.data(), delay ? kShort : kLong);
    fired += transport.fired();
    beyond_the_last = transport.operations() <= n;
    if (!transport.fired() && !delay) {
      for (const auto& [key, t] : told)
        EXPECT_TRUE(t.put.ok() && t.get.ok()) << t.put << " " << t.get;
    }
    client->reset();
    transport.Release();  // late writes
    Inspect(&nodes, specs, told);
    if (HasFailure()) return;
  }
  EXPECT_GT(fired, 3 * kBlocks);
}

struct StubCase {
  const char* name;
  StubFault kind;
  absl::StatusCode code;
  bool with_transport;
  int replicas = 1;
};
class StubSweep : public testing::TestWithParam<StubCase> {};
std::string StubCaseName(const testing::TestParamInfo<StubCase>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(
    Kinds, StubSweep,
    testing::Values(
        StubCase{"Refused", StubFault::kRefuse, absl::StatusCode::kUnavailable, true},
        StubCase{"RefusedStream", StubFault::kRefuse, absl::StatusCode::kUnavailable, false},
        StubCase{"AnswerLost", StubFault::kLoseAnswer, absl::StatusCode::kUnavailable, true},
        StubCase{"AnswerLostStream", StubFault::kLoseAnswer, absl::StatusCode::kUnavailable, false},
        StubCase{"TooLate", StubFault::kLoseAnswer, absl::StatusCode::kDeadlineExceeded, true},
        StubCase{"SessionLost", StubFault::kRefuse, absl::StatusCode::kUnauthenticated, true},
        StubCase{"RefusedCopies", StubFault::kRefuse, absl::StatusCode::kUnavailable, true, 2},
        StubCase{"RefusedStreamCopies", StubFault::kRefuse, absl::StatusCode::kUnavailable, false,
                 2},
        StubCase{"AnswerLostCopies", StubFault::kLoseAnswer, absl::StatusCode::kUnavailable, true,
                 2},
        StubCase{"TooLateCopies", StubFault::kLoseAnswer, absl::StatusCode::kDeadlineExceeded,
                 false, 2},
        StubCase{"SessionLostCopies", StubFault::kRefuse, absl::StatusCode::kUnauthenticated, true,
                 2}),
    StubCaseName);

TEST_P(StubSweep, EveryCall) {
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, kBlocks), kSize);
  int unharmed = 0;
  for (uint64_t n = 0; unharmed < 2; ++n) {
    SCOPED_TRACE(testing::Message() << "call " << n);
    ASSERT_LT(n, 200u) << "the fault always fires";
    TwoNodes nodes(GetParam().with_transport, GetParam().replicas);
    const std::unique_ptr<Transport> transport = nodes.NewTransport();
    Buffer buffer(transport.get(), 2 * kBlocks * kSize);
    StubFaults faults;
    faults.Inject(n, GetParam().kind, absl::Status(GetParam().code, "injected"));
    auto client = nodes.NewClient(transport.get(), &faults);
    ASSERT_TRUE(client.ok()) << client.status();
    const auto told = Scenario(client->get(), specs, buffer.data(), kLong);
    unharmed += !faults.fired();
    if (!faults.fired() || GetParam().replicas == 2) {  // one fault takes one copy at most
      for (const auto& [key, t] : told)
        EXPECT_TRUE(t.put.ok() && t.get.ok()) << t.put << " " << t.get;
    }
    client->reset();
    // A session whose end did not arrive keeps its pins until its TTL.
    if (faults.fired()) nodes.PassTtls();
    Inspect(&nodes, specs, told);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace oscarkv
