// Many threads on few blocks, with eviction under pressure and time going by: for ThreadSanitizer,
// and for the promise that whoever is told that a block was read has its bytes.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "client_support.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/core/local_stub.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers

constexpr int kThreads = 6;
constexpr int kRounds = 150;
constexpr int kChains = 24;
constexpr int kChainBlocks = 8;

uint64_t SizeOf(int chain) {
  return chain % 3 == 0 ? 30000 : 3000;
}

struct Node {
  Node(int i, const std::shared_ptr<LoopbackNetwork>& network)
      : transport(CreateLoopbackTransport(network)) {
    arena = *transport->Allocate(512 << 10, false);
    KvNodeOptions o;
    o.seed = i + 1;
    o.slab_bytes = 64 << 10;
    o.tenant_quota_bytes = 448 << 10;
    o.transport_name = transport->name();
    o.transport_address = transport->Address();
    o.exported_arena = arena->Export();
    metrics = std::make_unique<KvNodeMetrics>(&registry);
    node = std::make_unique<KvNode>(o, arena->span(), SteadyClock::Get(), metrics.get());
  }
  MetricRegistry registry;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<MemoryRegion> arena;
  std::unique_ptr<KvNodeMetrics> metrics;
  std::unique_ptr<KvNode> node;
};

class StressTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Transport, StressTest, testing::Bool());

void Work(KvClient* client, Transport* transport, uint64_t seed, std::atomic<int>* reads) {
  std::mt19937_64 rng(seed);
  Buffer buffer(transport, kChainBlocks * SizeOf(0));
  for (int round = 0; round < kRounds; ++round) {
    const int name = rng() % kChains;
    const uint64_t size = SizeOf(name);
    const std::vector<BlockKey> chain = Chain(name, kChainBlocks);
    const std::vector<BlockSpec> specs = SpecsOf(chain, size);
    switch (rng() % 8) {
      case 0:
        client->Erase({chain[3]}, {specs[3].placement}, Soon()).IgnoreError();
        break;
      case 1: {
        // Abandoned half way.
        auto batch = client->StartPut(specs, Soon());
        ASSERT_TRUE(batch.ok());
        const LocalPiece piece{0, 100, buffer.data()};
        (*batch)->Write(0, absl::MakeConstSpan(&piece, 1));
        break;
      }
      case 2:
      case 3:
      case 4:
        for (const absl::Status& s : PutAll(client, specs, buffer.data())) {
          ASSERT_TRUE(s.ok() || absl::IsAlreadyExists(s) || absl::IsResourceExhausted(s)) << s;
        }
        break;
      default: {
        ASSERT_TRUE(client->Match(chain, Soon()).ok());
        const auto statuses = client->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr);
        for (size_t i = 0; i < specs.size(); ++i) {
          ASSERT_TRUE(statuses[i].ok() || absl::IsNotFound(statuses[i])) << statuses[i];
          if (!statuses[i].ok()) continue;
          reads->fetch_add(1);
          ASSERT_EQ(std::string(reinterpret_cast<char*>(buffer.data()) + i * size, size),
                    Bytes(chain[i], size));
        }
      }
    }
  }
}

TEST_P(StressTest, WhatIsReadIsRight) {
  const auto network = CreateLoopbackNetwork();
  Node a(0, network), b(1, network);
  const std::unique_ptr<Transport> transport =
      GetParam() ? CreateLoopbackTransport(network) : nullptr;
  MetricRegistry registry;
  KvClientOptions o;
  o.nodes = {"a:1", "b:2"};
  o.transport = transport.get();
  o.metrics = &registry;
  auto client = CreateKvClient(o, [&](const std::string& node) {
    return std::make_unique<LocalStub>((node == "a:1" ? a : b).node.get());
  });
  ASSERT_TRUE(client.ok()) << client.status();

  std::atomic<bool> stop{false};
  std::thread ticker([&] {
    while (!stop) {
      a.node->Tick();
      b.node->Tick();
      std::this_thread::yield();
    }
  });
  std::atomic<int> reads{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] { Work(client->get(), transport.get(), 100 + t, &reads); });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_GT(reads.load(), 0);
  client->reset();
  stop = true;
  ticker.join();
  uint64_t evictions = 0;
  for (Node* n : {&a, &b}) {
    kv::StatsResponse s;
    ASSERT_TRUE(n->node->Handle(kv::StatsRequest{}, &s).ok());
    EXPECT_EQ(s.sessions, 0u);
    EXPECT_EQ(s.pinned_bytes, 0u);
    EXPECT_EQ(s.reserved_bytes, 0u);
    EXPECT_EQ(s.quarantined_bytes, 0u);
    evictions += s.evictions;
    EXPECT_GE(s.used_bytes, s.kind_bytes[0]);
  }
  EXPECT_GT(evictions, 0u);
}

}  // namespace
}  // namespace oscarkv
