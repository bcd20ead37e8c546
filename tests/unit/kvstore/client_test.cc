// The client's behaviour when nodes, pins and bytes misbehave in ways that only the whole of it can
// handle. In process: stubs straight onto nodes, loopback transport.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "client_fixture.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kSize = 6000;

TEST_F(ClientTest, ANodeThatIsAwayIsAMissAndComesBack) {
  TestServer* a = AddServer(&fake_);
  AddServer(&fake_);
  Connect();
  const std::vector<BlockKey> chain = Chain(2, 160);
  const std::vector<BlockSpec> specs = SpecsOf(chain, 600);
  Buffer buffer(&transport_, chain.size() * 600);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  ASSERT_EQ(*client_->Match(chain, Soon()), chain.size());

  const Placement placement({Member{.endpoint = "a"}, Member{.endpoint = "b"}});
  size_t first_of_a = 0;
  while (placement.OwnerOf(specs[first_of_a].placement) != 0) ++first_of_a;
  a->set_plugged(false);
  EXPECT_EQ(*client_->Match(chain, Soon()), first_of_a);
  const auto got = client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr);
  for (size_t i = 0; i < specs.size(); ++i) {
    const bool away = placement.OwnerOf(specs[i].placement) == 0;
    EXPECT_EQ(got[i].code(), away ? absl::StatusCode::kNotFound : absl::StatusCode::kOk) << got[i];
  }
  {
    const auto put = client_->StartPut(specs, Soon());
    ASSERT_TRUE(put.ok());
    EXPECT_EQ((*put)->statuses()[first_of_a].code(), absl::StatusCode::kUnavailable);
  }
  const auto stats = client_->Stats(Soon());
  EXPECT_FALSE(stats[0].reachable);
  EXPECT_NE(stats[0].error.find("unplugged"), std::string::npos) << stats[0].error;
  EXPECT_TRUE(stats[1].reachable);

  a->set_plugged(true);
  Await([&] { return *client_->Match(chain, Soon()) == chain.size(); });
  KvClientMetrics metrics(&registry_);
  EXPECT_GE(metrics.reconnects.With({"a"}).value(), 1);
}

TEST_F(ClientTest, ALostSessionIsOpenedAgain) {
  TestServer* a = AddServer(&fake_);
  Connect();
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 2), kSize);
  Buffer buffer(&transport_, 2 * kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  fake_.Advance(seconds(1000));
  a->node()->Tick();
  EXPECT_EQ(a->Stats().sessions, 0u);
  Await([&] { return client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)[0].ok(); });
  EXPECT_EQ(a->Stats().sessions, 1u);
}

TEST_F(ClientTest, SessionsAreKeptAliveAndPinsOfRunningGetsRenewed) {
  KvNodeOptions o;
  o.session_ttl = milliseconds(300);
  TestServer* a = AddServer(SteadyClock::Get(), o);
  Connect(/*pin_ttl=*/milliseconds(300));
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 1), kSize);
  Buffer buffer(&transport_, kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  Await([&] { return a->calls<kv::KeepAliveRequest>() >= 3; });
  // A get that takes long.
  transport_.Inject({.at = 0, .kind = FaultKind::kDelay});
  absl::Status got;
  std::thread reader(
      [&] { got = client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)[0]; });
  Await([&] { return a->calls<kv::RenewPinsRequest>() >= 2; });
  EXPECT_EQ(a->Stats().pinned_bytes, kSize);
  EXPECT_EQ(transport_.Release(), 1u);
  reader.join();
  EXPECT_TRUE(got.ok()) << got;
  EXPECT_EQ(a->Stats().pinned_bytes, 0u);
}

TEST_F(ClientTest, CorruptBlocksAreDetectedReportedAndErased) {
  TestServer* a = AddServer(&fake_);
  Connect();
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 3), kSize);
  Buffer buffer(&transport_, 3 * kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  // Find the middle block's bytes in the arena and flip a bit.
  const std::string bytes = Bytes(specs[1].key, kSize);
  const absl::string_view arena(reinterpret_cast<char*>(a->arena()), 1 << 20);
  const size_t at = arena.find(bytes);
  ASSERT_NE(at, absl::string_view::npos);
  a->arena()[at + kSize - 1] ^= 1;
  const auto got = client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr);
  EXPECT_TRUE(got[0].ok());
  EXPECT_EQ(got[1].code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(got[2].ok());
  EXPECT_EQ(a->Stats().pinned_bytes, 0u);
  EXPECT_EQ(*client_->Match({specs[0].key, specs[1].key, specs[2].key}, Soon()), 1u)
      << "that copy is erased";
  KvClientMetrics metrics(&registry_);
  EXPECT_EQ(metrics.errors.With({"get", "data_loss"}).value(), 1);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), {specs[1]}, buffer.data())));
  EXPECT_EQ(*client_->Match({specs[0].key, specs[1].key, specs[2].key}, Soon()), 3u);
}

TEST_F(ClientTest, ALostPinIsTriedAgainOnce) {
  KvNodeOptions o;
  o.session_ttl = seconds(1000);
  TestServer* a = AddServer(&fake_, o);
  Connect();
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 1), kSize);
  Buffer buffer(&transport_, kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  // While the block is under way, its pin expires.
  std::atomic<int> losses{1};
  transport_.SetHook([&](TransportCall call, uint64_t) {
    if (call != TransportCall::kPost || losses.fetch_sub(1) <= 0) return;
    fake_.Advance(seconds(100));
    a->node()->Tick();
  });
  EXPECT_TRUE(AllOk(client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)));
  losses = 2;
  EXPECT_EQ(client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)[0].code(),
            absl::StatusCode::kAborted);
  transport_.SetHook(nullptr);
  EXPECT_TRUE(AllOk(client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)));
  EXPECT_EQ(a->Stats().pinned_bytes, 0u);
}

TEST_F(ClientTest, ATransportThatConnectsLateIsTakenUp) {
  TestServer* a = AddServer(&fake_);
  // Operation 0 is the Connect of the client.
  transport_.Inject({.at = 0, .kind = FaultKind::kFail});
  Connect();
  EXPECT_EQ(client_->Stats(Soon())[0].lanes, "grpc");
  KvClientMetrics metrics(&registry_);
  EXPECT_EQ(metrics.degraded.With({"a"}).value(), 1);
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 2), kSize);
  Buffer buffer(&transport_, 2 * kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), specs, buffer.data())));
  Await([&] { return client_->Stats(Soon())[0].lanes == "loopback"; });
  EXPECT_EQ(metrics.degraded.With({"a"}).value(), 0);
  ASSERT_TRUE(AllOk(client_->Get(RequestsOf(specs, buffer.data()), Soon(), nullptr)));
  EXPECT_EQ(a->Stats().sessions, 1u) << "with the same session";
}

TEST_F(ClientTest, WhatACommitRefuses) {
  TestServer* a = AddServer(&fake_);
  Connect();
  const std::vector<BlockSpec> specs = SpecsOf(Chain(1, 4), kSize);
  Buffer buffer(&transport_, kSize);
  auto batch = client_->StartPut(specs, Soon());
  ASSERT_TRUE(batch.ok());
  const LocalPiece whole{0, kSize, buffer.data()}, half{0, kSize / 2, buffer.data()},
      beyond{1, kSize, buffer.data()};
  (*batch)->Write(0, absl::MakeConstSpan(&half, 1));
  (*batch)->Write(1, absl::MakeConstSpan(&whole, 1));
  (*batch)->Write(2, absl::MakeConstSpan(&beyond, 1));
  (*batch)->Write(3, absl::MakeConstSpan(&whole, 1));
  (*batch)->Write(99, absl::MakeConstSpan(&whole, 1));  // there is no such item
  const uint32_t crc = Crc32c(buffer.data(), kSize);
  const std::vector<Slice> good = {{0, kSize, crc}}, gap = {{0, 100, 0}, {200, kSize - 200, 0}};
  EXPECT_EQ((*batch)->Commit({}, Soon())[0].code(), absl::StatusCode::kInvalidArgument);
  const auto statuses = (*batch)->Commit({good, gap, good, good}, Soon());
  for (int i : {0, 1, 2})
    EXPECT_EQ(statuses[i].code(), absl::StatusCode::kInvalidArgument) << statuses[i];
  EXPECT_TRUE(statuses[3].ok()) << statuses[3];
  EXPECT_EQ(a->Stats().kind_blocks[0], 1u);
  batch->reset();
  EXPECT_EQ(a->Stats().reserved_bytes, 0u) << "the others are revoked";
  EXPECT_EQ(a->Stats().quarantined_bytes, 0u);
}

TEST_F(ClientTest, OptionsAreChecked) {
  const KvStubFactory none = [](const std::string&) { return nullptr; };
  KvClientOptions o;
  EXPECT_EQ(CreateKvClient(o, none).status().code(), absl::StatusCode::kInvalidArgument);
  o.nodes = {""};
  EXPECT_EQ(CreateKvClient(o, none).status().code(), absl::StatusCode::kInvalidArgument);
  o.nodes = {"a"};
  o.pin_ttl = Duration(0);
  EXPECT_EQ(CreateKvClient(o, none).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace oscarkv
