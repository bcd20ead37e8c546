// Who may call a node, and for which tenant: the calls of the wire, with bearer tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/auth/token.h"
#include "common/rpc/client_security.h"
#include "kvstore/client/client.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/server/kvstore_server.h"
#include "tests/fakes/test_certificates.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

using testing::HasSubstr;

Time Soon() {
  return SteadyClock::Get()->Now() + std::chrono::seconds(20);
}

class ServerAuthTest : public testing::Test {
 protected:
  ServerAuthTest() {
    std::string lines;
    for (const auto& [token, rest] : {std::pair{"a", "tenant=a"},
                                      {"b", "tenant=b"},
                                      {"w", "roles=worker"},
                                      {"op", "roles=operator"}}) {
      absl::StrAppend(&lines, "token sha256:", auth::TokenDigest(token), " name=", token, " ", rest,
                      "\n");
    }
    KvStoreServerOptions options;
    options.capacity = 16 << 20;
    options.huge_pages = false;
    options.security.auth_file = folder_.Write("auth", lines);
    auto server = KvStoreServer::Start(options, transport_.get(), &registry_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::shared_ptr<const rpc::ClientSecurity> As(const std::string& token) const {
    if (token.empty()) return rpc::ClientSecurity::None();
    auth::SecurityOptions options;
    options.token_file = folder_.Write("token-" + token, token);
    return *rpc::ClientSecurity::Create(options);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", server_->port()); }
  std::unique_ptr<KvStub> Stub(const std::string& token) const {
    return MakeGrpcStub(address(), As(token));
  }
  absl::StatusOr<kv::OpenSessionResponse> Open(KvStub* stub, const std::string& tenant) const {
    return CallAndWait(stub, kv::OpenSessionRequest{"test", tenant}, Soon());
  }

  TemporaryFolder folder_;
  MetricRegistry registry_;
  std::unique_ptr<Transport> transport_ = CreateLoopbackTransport(CreateLoopbackNetwork());
  std::unique_ptr<KvStoreServer> server_;
};

TEST_F(ServerAuthTest, SessionsAreOfTheCallersTenant) {
  const auto a = Stub("a"), w = Stub("w");
  EXPECT_TRUE(Open(a.get(), "a").ok());
  EXPECT_TRUE(Open(a.get(), "").ok()) << "its own";
  const auto other = Open(a.get(), "b");
  EXPECT_TRUE(absl::IsPermissionDenied(other.status()));
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("'a' may not act for tenant 'b'"));
  for (const char* tenant : {"a", "b", "", "new"}) EXPECT_TRUE(Open(w.get(), tenant).ok());
  for (const char* token : {"", "x"}) {
    EXPECT_TRUE(absl::IsUnauthenticated(Open(Stub(token).get(), "a").status())) << token;
  }
  EXPECT_TRUE(absl::IsPermissionDenied(Open(Stub("op").get(), "").status()));
}

TEST_F(ServerAuthTest, OnlyTheClusterGetsKeysToTheArena) {
  const auto worker = Open(Stub("w").get(), "a");
  ASSERT_TRUE(worker.ok());
  EXPECT_FALSE(worker->exported_arena.empty());
  EXPECT_FALSE(worker->transport_address.empty());
  const auto client = Open(Stub("a").get(), "a");
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(client->exported_arena, "");
  EXPECT_EQ(client->transport_address, "");
}

// Every call that names a session, with another tenant's.
TEST_F(ServerAuthTest, ASessionOfAnotherTenantIsNoUse) {
  const auto a = Stub("a"), b = Stub("b"), none = Stub("");
  const uint64_t session = Open(a.get(), "a")->session_id;
  const kv::KvRequest calls[] = {kv::KeepAliveRequest{session},
                                 kv::CloseSessionRequest{session},
                                 kv::MatchPrefixRequest{session, {}},
                                 kv::ExistsRequest{session, {}},
                                 kv::GetStartRequest{session, {}, {}},
                                 kv::RenewPinsRequest{session, {}, {}},
                                 kv::ReleaseRequest{session, {}, {}},
                                 kv::PutStartRequest{session, {}, 0},
                                 kv::PutEndRequest{session, {}},
                                 kv::PutRevokeRequest{session, {}, false},
                                 kv::EraseRequest{session, {}, kv::EraseReason::kRequested, {}}};
  for (const kv::KvRequest& call : calls) {
    for (const auto& [stub, code] : {std::pair{b.get(), absl::StatusCode::kPermissionDenied},
                                     {none.get(), absl::StatusCode::kUnauthenticated}}) {
      CallBarrier barrier;
      absl::Status status;
      barrier.Add();
      stub->Call(call, Soon(), [&](absl::StatusOr<kv::KvResponse> response) {
        status = response.status();
        barrier.Done();
      });
      barrier.Wait();
      EXPECT_EQ(status.code(), code) << call.index() << " " << status;
    }
  }
  CallBarrier barrier;
  absl::Status read, written;
  uint8_t bytes[8];
  barrier.Add();
  b->ReadBlocks(session, {{{1, 0, 8}, bytes}}, Soon(), [&](absl::Status status) {
    read = status;
    barrier.Done();
  });
  CallCanceller canceller;
  barrier.Add();
  b->WriteBlocks(session, {{{BlockKey{}, 1, 0}, bytes}}, Soon(), &canceller,
                 [&](absl::StatusOr<KvStub::WriteErrors> errors) {
                   written = errors.status();
                   barrier.Done();
                 });
  barrier.Wait();
  EXPECT_TRUE(absl::IsPermissionDenied(read)) << read;
  EXPECT_TRUE(absl::IsPermissionDenied(written)) << written;
  EXPECT_TRUE(CallAndWait(a.get(), kv::KeepAliveRequest{session}, Soon()).ok()) << "untouched";
}

TEST_F(ServerAuthTest, FiguresAreForThoseWhoRunIt) {
  for (const char* token : {"w", "op"})
    EXPECT_TRUE(CallAndWait(Stub(token).get(), kv::StatsRequest{}, Soon()).ok()) << token;
  EXPECT_TRUE(
      absl::IsPermissionDenied(CallAndWait(Stub("a").get(), kv::StatsRequest{}, Soon()).status()));
}

// The client library with a client's token: its blocks travel over the streams.
TEST_F(ServerAuthTest, AClientOfATenantIsServedOverTheStreams) {
  KvClientOptions options;
  options.nodes = {address()};
  options.transport = transport_.get();
  options.security = As("a");
  const auto client = KvClient::Create(options);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ(*(*client)->Match({BlockKey{}}, Soon()), 0u);
}

}  // namespace
}  // namespace oscarkv
