// Real servers and clients over gRPC, with each data path.
#include "kvstore/server/kvstore_server.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client_support.h"
#include "kvstore/metrics.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers

constexpr uint64_t kSize = 20000;

enum class Path { kGrpc, kLoopback, kUcx, kUcxTcp };

struct Cluster {
  std::shared_ptr<LoopbackNetwork> network = CreateLoopbackNetwork();
  MetricRegistry registry;
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::unique_ptr<KvStoreServer>> servers;
  std::unique_ptr<KvClient> client;

  Transport* NewTransport(Path path) {
    if (path == Path::kGrpc) return nullptr;
    if (path == Path::kLoopback) {
      transports.push_back(CreateLoopbackTransport(network));
    } else {
      UcxOptions o;
      if (path == Path::kUcxTcp) o.lanes = "tcp";
      auto ucx = CreateUcxTransport(o, nullptr);
      EXPECT_TRUE(ucx.ok()) << ucx.status();
      transports.push_back(*std::move(ucx));
    }
    return transports.back().get();
  }
  std::string StartServer(Path path, KvStoreServerOptions o = {}) {
    o.capacity = 16 << 20;
    o.huge_pages = false;
    auto server = KvStoreServer::Start(o, NewTransport(path), &registry);
    EXPECT_TRUE(server.ok()) << server.status();
    servers.push_back(*std::move(server));
    return absl::StrCat("127.0.0.1:", servers.back()->port());
  }
  Transport* StartClient(Path path, std::vector<std::string> nodes, Path server_path) {
    KvClientOptions o;
    o.nodes = std::move(nodes);
    o.name = "test";
    o.transport = NewTransport(path);
    o.metrics = &registry;
    auto created = KvClient::Create(o);
    EXPECT_TRUE(created.ok()) << created.status();
    client = *std::move(created);
    return o.transport;
  }
};

class DataPathTest : public testing::TestWithParam<Path> {};
std::string PathName(const testing::TestParamInfo<Path>& info) {
  const char* const kNames[] = {"Grpc", "Loopback", "Ucx", "UcxTcp"};
  return kNames[static_cast<int>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Paths, DataPathTest,
                         testing::Values(Path::kGrpc, Path::kLoopback, Path::kUcx, Path::kUcxTcp),
                         PathName);

TEST_P(DataPathTest, PutMatchGetErase) {
  Cluster c;
  std::vector<std::string> nodes;
  for (int i = 0; i < 3; ++i) nodes.push_back(c.StartServer(GetParam()));
  Transport* transport = c.StartClient(GetParam(), nodes, GetParam());
  const std::vector<BlockKey> chain = Chain(5, 100);
  const std::vector<BlockSpec> specs = SpecsOf(chain, kSize);
  Buffer buffer(transport, specs.size() * kSize);
  EXPECT_EQ(*c.client->Match(chain, Soon()), 0u);
  TransferTotals put;
  ASSERT_TRUE(AllOk(PutAll(c.client.get(), specs, buffer.data(), Soon(), &put)));
  EXPECT_EQ(put.blocks, 2 * specs.size()) << "two copies";
  EXPECT_EQ(put.bytes, 2 * specs.size() * kSize);
  EXPECT_EQ(*c.client->Match(chain, Soon()), chain.size());

  std::memset(buffer.data(), 0, specs.size() * kSize);
  TransferTotals got;
  ASSERT_TRUE(AllOk(c.client->Get(RequestsOf(specs, buffer.data()), Soon(), &got)));
  EXPECT_EQ(got.bytes, specs.size() * kSize);
  EXPECT_EQ(got.lanes, put.lanes);
  for (size_t i = 0; i < specs.size(); ++i) {
    ASSERT_EQ(std::string(reinterpret_cast<char*>(buffer.data()) + i * kSize, kSize),
              Bytes(chain[i], kSize))
        << i;
  }
  for (const absl::Status& s : PutAll(c.client.get(), specs, buffer.data())) {
    EXPECT_EQ(s.code(), absl::StatusCode::kAlreadyExists);
  }

  uint64_t blocks = 0;
  int owners = 0;
  for (const KvNodeStats& s : c.client->Stats(Soon())) {
    EXPECT_TRUE(s.reachable) << s.error;
    EXPECT_EQ(s.lanes, put.lanes);
    EXPECT_EQ(s.pinned_bytes, 0u);
    EXPECT_EQ(s.reserved_bytes, 0u);
    blocks += s.kind_blocks[0];
    owners += s.kind_blocks[0] > 0;
  }
  EXPECT_EQ(blocks, 2 * chain.size());
  EXPECT_EQ(owners, 3);

  ASSERT_TRUE(c.client->Erase({chain[40]}, {PlacementOf(chain, 40)}, Soon()).ok());
  EXPECT_EQ(*c.client->Match(chain, Soon()), 40u);
  EXPECT_EQ(c.client->Exists({chain[39], chain[40]},
                             {PlacementOf(chain, 39), PlacementOf(chain, 40)}, Soon()),
            (std::vector<bool>{true, false}));
  EXPECT_EQ(c.client->Get(RequestsOf({specs[40]}, buffer.data()), Soon(), nullptr)[0].code(),
            absl::StatusCode::kNotFound);
}

TEST_P(DataPathTest, LayersAreFetchedOneByOne) {
  Cluster c;
  const std::vector<std::string> nodes = {c.StartServer(GetParam())};
  Transport* transport = c.StartClient(GetParam(), nodes, GetParam());
  const std::vector<BlockSpec> specs = SpecsOf(Chain(6, 2), kSize);
  Buffer buffer(transport, 2 * kSize);
  ASSERT_TRUE(AllOk(PutAll(c.client.get(), specs, buffer.data())));
  const std::string bytes = Bytes(specs[1].key, kSize);
  const std::vector<Slice> slices = SlicesOf(Table(bytes));
  // The last two slices apart, to swapped places.
  std::memset(buffer.data(), 0, 2 * kSize);
  const std::vector<LocalPiece> pieces = {
      {slices[2].offset, slices[2].length, buffer.data()},
      {slices[1].offset, slices[1].length, buffer.data() + kSize}};
  ASSERT_TRUE(AllOk(c.client->Get({{specs[1].key, specs[1].placement, pieces}}, Soon(), nullptr)));
  const char* data = reinterpret_cast<const char*>(buffer.data());
  EXPECT_EQ(std::string(data, slices[2].length), bytes.substr(slices[2].offset, slices[2].length));
  EXPECT_EQ(std::string(data + kSize, slices[1].length),
            bytes.substr(slices[1].offset, slices[1].length));
  // Half a slice has no checksum.
  const std::vector<LocalPiece> half = {{slices[1].offset, slices[1].length / 2, buffer.data()}};
  EXPECT_EQ(c.client->Get({{specs[1].key, specs[1].placement, half}}, Soon(), nullptr)[0].code(),
            absl::StatusCode::kInvalidArgument);
  for (const KvNodeStats& s : c.client->Stats(Soon())) EXPECT_EQ(s.pinned_bytes, 0u);
}

void Await(const std::function<bool()>& condition) {
  const Time deadline = Soon();
  while (!condition()) {
    ASSERT_LT(SteadyClock::Get()->Now(), deadline) << "waited in vain";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(ServerTest, BytesAreStreamedAsTheyAreWritten) {
  Cluster c;
  c.StartClient(Path::kGrpc, {c.StartServer(Path::kGrpc)}, Path::kGrpc);
  const std::vector<BlockSpec> specs = SpecsOf(Chain(9, 2), kSize);
  Buffer buffer(nullptr, kSize);
  KvNodeMetrics metrics(&c.registry);
  {
    auto batch = c.client->StartPut(specs, Soon());
    ASSERT_TRUE(batch.ok());
    for (uint64_t at : {uint64_t{0}, kSize / 2}) {
      const LocalPiece piece{at, kSize / 2, buffer.data() + at};
      (*batch)->Write(0, absl::MakeConstSpan(&piece, 1));
    }
    Await([&] { return metrics.stream_bytes.With({"write"}).value() >= kSize; });
    const LocalPiece whole{0, kSize, buffer.data()};  // perhaps still under way when the batch goes
    (*batch)->Write(1, absl::MakeConstSpan(&whole, 1));
  }
  // Nobody waits for the answer to the revocation.
  Await([&] { return c.client->Stats(Soon())[0].used_bytes == 0; });
}

TEST(ServerTest, TenantsAreSeparateOverTheWire) {
  Cluster c;
  const std::vector<std::string> nodes = {c.StartServer(Path::kGrpc)};
  const std::vector<BlockSpec> specs = SpecsOf(Chain(10, 3), kSize);
  const std::vector<BlockKey> chain = Chain(10, 3);
  Buffer buffer(nullptr, 3 * kSize);
  KvClientOptions o;
  o.nodes = nodes;
  o.tenant = "A";
  const auto a = KvClient::Create(o);
  o.tenant = "B";
  const auto b = KvClient::Create(o);
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE(AllOk(PutAll(a->get(), specs, buffer.data())));
  EXPECT_EQ(*(*a)->Match(chain, Soon()), 3u);
  EXPECT_EQ(*(*b)->Match(chain, Soon()), 0u);
  EXPECT_EQ((*b)->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)[0].code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE((*b)->Erase({chain[0]}, {PlacementOf(chain, 0)}, Soon()).ok());
  EXPECT_EQ(*(*a)->Match(chain, Soon()), 3u);
}

TEST(ServerTest, ANodeThatComesBackIsFoundAgain) {
  Cluster c;
  const std::string node = c.StartServer(Path::kGrpc);
  c.StartClient(Path::kGrpc, {node}, Path::kGrpc);
  const std::vector<BlockSpec> specs = SpecsOf(Chain(11, 2), kSize);
  Buffer buffer(nullptr, 2 * kSize);
  ASSERT_TRUE(AllOk(PutAll(c.client.get(), specs, buffer.data())));
  c.servers.clear();
  Await([&] { return !c.client->Stats(Soon())[0].reachable; });
  KvStoreServerOptions o;
  o.listen = node;
  ASSERT_EQ(c.StartServer(Path::kGrpc, o), node);
  Await([&] { return c.client->Stats(Soon())[0].reachable; });
  EXPECT_EQ(*c.client->Match({specs[0].key}, Soon()), 0u) << "its memory is new";
  ASSERT_TRUE(AllOk(PutAll(c.client.get(), specs, buffer.data())));
}

TEST(ServerTest, AClientWhoseTransportDiffersFallsBackLoudly) {
  Cluster c;
  const std::vector<std::string> nodes = {c.StartServer(Path::kGrpc)};
  Transport* transport = c.StartClient(Path::kLoopback, nodes, Path::kGrpc);
  const std::vector<BlockSpec> specs = SpecsOf(Chain(7, 3), kSize);
  Buffer buffer(transport, 3 * kSize);
  TransferTotals totals;
  ASSERT_TRUE(AllOk(PutAll(c.client.get(), specs, buffer.data(), Soon(), &totals)));
  EXPECT_EQ(totals.lanes, "grpc");
  KvClientMetrics metrics(&c.registry);
  EXPECT_EQ(metrics.degraded.With({nodes[0]}).value(), 1);
}

TEST(ServerTest, NoNodeIsAnErrorThatNamesThem) {
  KvClientOptions o;
  o.nodes = {"127.0.0.1:1", "127.0.0.1:2"};
  o.connect_timeout = std::chrono::seconds(2);
  const auto client = KvClient::Create(o);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(client.status().message().find("127.0.0.1:1"), absl::string_view::npos)
      << client.status();
  EXPECT_NE(client.status().message().find("127.0.0.1:2"), absl::string_view::npos)
      << client.status();
}

TEST(ServerTest, WrongOptionsAreNamed) {
  KvStoreServerOptions o;
  o.listen = "nowhere";
  EXPECT_EQ(KvStoreServer::Start(o, nullptr, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  o.listen = "127.0.0.1:0";
  o.low_watermark = 0.99f;
  EXPECT_EQ(KvStoreServer::Start(o, nullptr, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  o.low_watermark = 0.5f;
  o.capacity = 1 << 20;
  auto first = KvStoreServer::Start(o, nullptr, nullptr);
  ASSERT_TRUE(first.ok());
  o.listen = absl::StrCat("127.0.0.1:", (*first)->port());
  EXPECT_EQ(KvStoreServer::Start(o, nullptr, nullptr).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(ServerTest, OptionsComeFromTheTable) {
  KvStoreServerOptions o;
  OptionTable table;
  AddOptions(&table, &o);
  EXPECT_TRUE(table.Set("capacity", "64MiB").ok());
  EXPECT_TRUE(table.Set("tenant-quota", "4MiB").ok());
  EXPECT_TRUE(table.Set("eviction", "lru").ok());
  EXPECT_TRUE(table.Set("pin-ttl", "5s").ok());
  EXPECT_EQ(o.capacity, 64u << 20);
  EXPECT_EQ(o.tenant_quota, 4u << 20);
  EXPECT_EQ(o.eviction, "lru");
  EXPECT_EQ(o.pin_ttl, Duration(std::chrono::seconds(5)));
  EXPECT_FALSE(table.Set("eviction", "random").ok());
  EXPECT_FALSE(table.Set("capacity", "1").ok());
}

TEST(ServerTest, AClosedClientLeavesNothingBehind) {
  Cluster c;
  const std::vector<std::string> nodes = {c.StartServer(Path::kLoopback)};
  Transport* transport = c.StartClient(Path::kLoopback, nodes, Path::kLoopback);
  const std::vector<BlockSpec> specs = SpecsOf(Chain(8, 4), kSize);
  {
    auto batch = c.client->StartPut(specs, Soon());
    ASSERT_TRUE(batch.ok());
    for (const absl::Status& s : (*batch)->statuses()) ASSERT_TRUE(s.ok());
  }
  c.client.reset();
  c.StartClient(Path::kLoopback, nodes, Path::kLoopback);
  const KvNodeStats s = c.client->Stats(Soon())[0];
  EXPECT_EQ(s.sessions, 1u);
  EXPECT_EQ(s.used_bytes, 0u);
  (void)transport;
}

}  // namespace
}  // namespace oscarkv
