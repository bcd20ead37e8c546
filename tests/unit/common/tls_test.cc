// TLS between a server and clients of common/rpc, with real handshakes on 127.0.0.1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/auth/token.h"
#include "common/rpc/call_tracker.h"
#include "common/rpc/client_security.h"
#include "common/rpc/guard.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "oscarkv/v1/gateway.grpc.pb.h"
#include "tests/fakes/test_certificates.h"

namespace oscarkv::rpc {
namespace {

using auth::SecurityOptions;
using testing::AnyOf;
using testing::HasSubstr;

Time In(int seconds) {
  return SteadyClock::Get()->Now() + std::chrono::seconds(seconds);
}

// Says who called.
class WhoService final : public v1::Gateway::CallbackService {
 public:
  explicit WhoService(const Guard* guard) : guard_(guard) {}
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest*,
                                     v1::GetModelResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const auto identity = guard_->Check(*context, auth::kClient);
    if (identity.ok()) response->set_name(absl::StrCat(identity->name, "@", identity->tenant));
    reactor->Finish(ToGrpc(identity.status()));
    return reactor;
  }
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest*, v1::TokenizeResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const Guard* const guard_;
};

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    certs_.MakeAuthority("ca");
    certs_.MakeAuthority("other");
    certs_.MakeCertificate("server", "ca", "DNS:kv.example,IP:127.0.0.1");
    certs_.MakeCertificate("client", "ca", "DNS:client.example");
    certs_.MakeCertificate("stranger", "other", "DNS:client.example");
  }
  SecurityOptions Serving(const std::string& client_auth = "none") const {
    SecurityOptions o;
    o.tls_cert = certs_.Cert("server");
    o.tls_key = certs_.Key("server");
    o.tls_ca = certs_.Cert("ca");
    o.tls_client_auth = client_auth;
    return o;
  }
  SecurityOptions Connecting(const std::string& cert = "", const std::string& ca = "ca") const {
    SecurityOptions o;
    o.tls_ca = certs_.Cert(ca);
    if (!cert.empty()) {
      o.tls_cert = certs_.Cert(cert);
      o.tls_key = certs_.Key(cert);
    }
    return o;
  }
  void Start(const SecurityOptions& options) {
    guard_ = *Guard::Create(options, &registry_);
    service_ = std::make_unique<WhoService>(guard_.get());
    ServerSettings settings;
    settings.listen = "127.0.0.1:0";
    settings.security = options;
    auto server = Server::Start(settings, service_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // A new connection's call: who the server says we are, or why not.
  std::string Call(const SecurityOptions& options, const std::string& extra_header = "") const {
    auto security = ClientSecurity::Create(options);
    if (!security.ok()) return security.status().ToString();
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto stub = v1::Gateway::NewStub(
        (*security)->Connect(absl::StrCat("127.0.0.1:", server_->port()), args));
    grpc::ClientContext context;
    context.set_deadline(ToSystem(In(20)));
    (*security)->Authorize(&context);
    if (!extra_header.empty()) context.AddMetadata("authorization", extra_header);
    v1::GetModelResponse response;
    const grpc::Status status = stub->GetModel(&context, {}, &response);
    return status.ok() ? response.name() : FromGrpc(status).ToString();
  }

  TestCertificates certs_;
  MetricRegistry registry_;
  std::unique_ptr<Guard> guard_;
  std::unique_ptr<WhoService> service_;
  std::unique_ptr<Server> server_;
};

TEST_F(TlsTest, ServerIsVerified) {
  Start(Serving());
  EXPECT_EQ(Call(Connecting()), "@");
  EXPECT_EQ(Call(Connecting("client")), "@") << "not asked for";
  EXPECT_THAT(Call(Connecting("", "other")), HasSubstr("certificate verify failed"));
  EXPECT_THAT(Call({}), HasSubstr("UNAVAILABLE")) << "plain text";
  SecurityOptions named = Connecting();
  named.tls_peer_name = "kv.example";
  EXPECT_EQ(Call(named), "@");
  named.tls_peer_name = "evil.example";
  EXPECT_THAT(Call(named), HasSubstr("UNAVAILABLE")) << "another name";
}

TEST_F(TlsTest, ClientIsVerified) {
  Start(Serving("require"));
  EXPECT_EQ(Call(Connecting("client")), "@");
  EXPECT_THAT(Call(Connecting()), HasSubstr("UNAVAILABLE")) << "no certificate";
  EXPECT_THAT(Call(Connecting("stranger")), HasSubstr("UNAVAILABLE")) << "of another authority";
}

TEST_F(TlsTest, CertificatesAreMappedToIdentities) {
  SecurityOptions options = Serving("optional");
  options.auth_file = certs_.folder().Write(
      "auth", absl::StrCat("cert client.example tenant=acme\ntoken sha256:", auth::TokenDigest("t"),
                           " tenant=tok name=n\n"));
  Start(options);
  EXPECT_EQ(Call(Connecting("client")), "client.example@acme");
  EXPECT_THAT(Call(Connecting()), HasSubstr("UNAUTHENTICATED: no credentials"));
  SecurityOptions with_token = Connecting("client");
  with_token.token_file = certs_.folder().Write("token", "t\n");
  EXPECT_EQ(Call(with_token), "n@tok") << "the token goes first";
  EXPECT_THAT(Call(with_token, "Bearer t"), HasSubstr("UNAUTHENTICATED: several authorization"));
  with_token.token_file = certs_.folder().Write("token2", "u\n");
  EXPECT_THAT(Call(with_token), HasSubstr("UNAUTHENTICATED: unknown bearer token"));
  EXPECT_THAT(Call(Connecting("stranger")), HasSubstr("UNAVAILABLE"));
  MetricFamily& refused = registry_.AddCounter("oscarkv_auth_refused_total", "", {"code"});
  EXPECT_EQ(refused.With({"UNAUTHENTICATED"}).value(), 3);
}

TEST_F(TlsTest, ReplacedCertificatesAreUsedByNewConnections) {
  Start(Serving("require"));
  ASSERT_EQ(Call(Connecting("client")), "@");
  // Another authority for all, at the same paths. New files, then one rename each.
  certs_.MakeCertificate("server2", "other", "IP:127.0.0.1");
  for (const auto& [from, to] : {std::pair{certs_.Key("server2"), certs_.Key("server")},
                                 {certs_.Cert("server2"), certs_.Cert("server")},
                                 {certs_.Cert("other"), certs_.Cert("ca")}}) {
    std::filesystem::copy_file(from, to + ".new");
    std::filesystem::rename(to + ".new", to);
  }
  const Time deadline = In(60);  // every two seconds the files are looked at
  std::string answer;
  do {
    answer = Call(Connecting("stranger", "other"));
  } while (answer != "@" && SteadyClock::Get()->Now() < deadline);
  EXPECT_EQ(answer, "@");
  EXPECT_THAT(Call(Connecting("client", "other")), HasSubstr("UNAVAILABLE")) << "the old authority";
}

TEST_F(TlsTest, BadOptionsDoNotServe) {
  SecurityOptions options = Serving();
  options.tls_key = certs_.Key("client");
  ServerSettings settings;
  settings.listen = "127.0.0.1:0";
  settings.security = options;
  WhoService service(nullptr);
  EXPECT_TRUE(absl::IsInvalidArgument(Server::Start(settings, &service).status()));
}

class LimitsTest : public TlsTest {
 protected:
  LimitsTest() {
    Start({});
    stub_ = v1::Gateway::NewStub(
        (ClientSecurity::None())->Connect(absl::StrCat("127.0.0.1:", server_->port()), {}));
  }
  std::string Tokenize(size_t bytes, grpc_compression_algorithm compression) {
    grpc::ClientContext context;
    context.set_deadline(ToSystem(In(20)));
    context.set_compression_algorithm(compression);
    v1::TokenizeRequest request;
    request.set_text(std::string(bytes, 'a'));
    v1::TokenizeResponse response;
    return FromGrpc(stub_->Tokenize(&context, request, &response)).ToString();
  }
  std::unique_ptr<v1::Gateway::Stub> stub_;
};

TEST_F(LimitsTest, MessagesAndHeaders) {
  EXPECT_EQ(Tokenize(1000, GRPC_COMPRESS_NONE), "OK");
  EXPECT_THAT(Tokenize(5 << 20, GRPC_COMPRESS_NONE), HasSubstr("RESOURCE_EXHAUSTED"));
  // 3 MiB that grow from 3 KB: what is compressed is not even unpacked.
  EXPECT_THAT(Tokenize(3 << 20, GRPC_COMPRESS_GZIP), HasSubstr("UNIMPLEMENTED"));
  EXPECT_THAT(Tokenize(3 << 20, GRPC_COMPRESS_DEFLATE), HasSubstr("UNIMPLEMENTED"));
  grpc::ClientContext context;
  context.set_deadline(ToSystem(In(20)));
  context.AddMetadata("x-large", std::string(32 << 10, 'x'));
  v1::GetModelResponse response;
  EXPECT_EQ(stub_->GetModel(&context, {}, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace oscarkv::rpc
