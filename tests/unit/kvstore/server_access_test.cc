// A node that grants block by block, and a worker that tries more: over the wire, gRPC and UCX.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/rpc/client_security.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/server/kvstore_server.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

constexpr uint64_t kSize = 20'000;

Time Soon() {
  return SteadyClock::Get()->Now() + std::chrono::seconds(20);
}

BlockKey Key(int32_t n) {
  return ChainKey(Sha256Digest{}, BlockKey{}, {&n, 1});
}

// A session at the node with its connection, as a worker has.
struct Worker {
  kv::OpenSessionResponse session;
  std::unique_ptr<Peer> peer;
  std::unique_ptr<RemoteRegion> arena;
};

class ServerAccessTest : public testing::Test {
 protected:
  ServerAccessTest() {
    KvStoreServerOptions options;
    options.capacity = 16 << 20;
    options.huge_pages = false;
    options.data_access = "granted";
    auto server = KvStoreServer::Start(options, &registry_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = MakeGrpcStub(absl::StrCat("127.0.0.1:", server_->port()), rpc::ClientSecurity::None());
    transport_ = *CreateUcxTransport({}, nullptr);
    memory_ = *transport_->Allocate(1 << 20, /*huge_pages=*/false);
  }
  template <typename Request>
  typename Request::Response Call(Request request) {
    auto response = CallAndWait(stub_.get(), std::move(request), Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *std::move(response) : typename Request::Response{};
  }
  Worker Connect(const std::string& tenant) {
    Worker w;
    w.session = Call(kv::OpenSessionRequest{"worker", tenant});
    auto peer = transport_->Connect(w.session.transport_address, Soon());
    EXPECT_TRUE(peer.ok()) << peer.status();
    w.peer = *std::move(peer);
    w.arena = *w.peer->Import(w.session.exported_arena);
    return w;
  }
  absl::StatusCode Move(const Worker& w, TransferKind kind, uint64_t offset, uint64_t length) {
    const TransferOp op{kind, memory_->span().data(), length, w.arena.get(), offset};
    auto handle = w.peer->Post({&op, 1}, Soon());
    return handle.ok() ? (*handle)->Wait(Soon()).code() : handle.status().code();
  }
  absl::StatusCode Read(const Worker& w, uint64_t offset, uint64_t length) {
    return Move(w, TransferKind::kRead, offset, length);
  }
  absl::StatusCode Write(const Worker& w, uint64_t offset, uint64_t length) {
    return Move(w, TransferKind::kWrite, offset, length);
  }
  double Refused(const char* what) {
    return registry_.AddCounter("oscarkv_transport_refused_total", "", {"lane", "what"})
        .With({"tcp", what})
        .value();
  }

  MetricRegistry registry_;
  std::unique_ptr<KvStoreServer> server_;
  std::unique_ptr<KvStub> stub_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<MemoryRegion> memory_;
};

constexpr auto kOk = absl::StatusCode::kOk, kDenied = absl::StatusCode::kPermissionDenied;

TEST_F(ServerAccessTest, AWorkerTouchesWhatItsSessionHolds) {
  Worker a = Connect("a"), b = Connect("b");
  EXPECT_EQ(a.peer->lane(), "tcp") << "shared memory is there, but asks nobody";
  EXPECT_EQ(Read(a, 0, 100), kDenied) << "nothing is its";
  EXPECT_EQ(Write(a, 0, 100), kDenied);

  const auto put = Call(kv::PutStartRequest{
      a.session.session_id, {{Key(1), {}, BlockKind::kPage, kSize, Duration(0)}}, 1});
  ASSERT_TRUE(put.statuses[0].ok());
  const uint64_t at = put.offsets[0];
  std::memset(memory_->span().data(), 'x', kSize);
  EXPECT_EQ(Write(a, at, kSize), kOk);
  EXPECT_EQ(Write(a, at, kSize + 1), kDenied);
  EXPECT_EQ(Read(a, at, 1), kDenied) << "reserved is not pinned";
  EXPECT_EQ(Write(b, at, 1), kDenied) << "another tenant's";
  const std::string bytes(kSize, 'x');
  const auto end = Call(kv::PutEndRequest{
      a.session.session_id,
      {{Key(1), put.generations[0], {{kSize}, {Crc32c(bytes.data(), bytes.size())}}}}});
  ASSERT_TRUE(end.statuses[0].ok()) << end.statuses[0];
  EXPECT_EQ(Write(a, at, 1), kDenied) << "committed";

  const auto got = Call(kv::GetStartRequest{a.session.session_id, {Key(1)}, Duration(0)});
  ASSERT_TRUE(got.statuses[0].ok());
  std::memset(memory_->span().data(), 0, kSize);
  EXPECT_EQ(Read(a, got.locations[0].offset, kSize), kOk);
  EXPECT_EQ(std::memcmp(memory_->span().data(), bytes.data(), kSize), 0);
  EXPECT_EQ(Read(a, at, kSize + 1), kDenied);
  EXPECT_EQ(Read(b, at, kSize), kDenied) << "another tenant's";
  Call(kv::ReleaseRequest{
      a.session.session_id, {got.locations[0].pin_id}, {got.locations[0].generation}});
  EXPECT_EQ(Read(a, at, 1), kDenied) << "released";
  EXPECT_GE(Refused("access"), 8);
  EXPECT_EQ(Refused("hello"), 0);
  EXPECT_TRUE(a.peer->healthy());
}

TEST_F(ServerAccessTest, WithTheSessionTheConnectionEnds) {
  Worker a = Connect("a");
  Call(kv::CloseSessionRequest{a.session.session_id});
  EXPECT_NE(Read(a, 0, 1), kOk);
  EXPECT_FALSE(transport_
                   ->Connect(a.session.transport_address,
                             SteadyClock::Get()->Now() + std::chrono::milliseconds(300))
                   .ok())
      << "the address was the session's";
  EXPECT_EQ(Refused("hello"), 1);
  EXPECT_EQ(Read(a, 0, 1), kDenied);
  EXPECT_EQ(Connect("a").peer->healthy(), true) << "a new session, a new address";
}

TEST(ServerAccess, LanesThatAskNobodyAreRefused) {
  KvStoreServerOptions options;
  options.data_access = "granted";
  for (const char* lanes : {"shm", "rdma", "shm,tcp", "all"}) {
    options.ucx_lanes = lanes;
    const absl::Status status = CheckOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << lanes;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--data-access=granted"));
  }
}

}  // namespace
}  // namespace oscarkv
