// The HTTP server with TLS, and the metrics port: real handshakes by the curl command line.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/auth/certificate_metrics.h"
#include "common/auth/token.h"
#include "common/http/http_server.h"
#include "common/metrics_server.h"
#include "common/mutex.h"
#include "tests/fakes/test_certificates.h"

namespace oscarkv {
namespace {

using auth::SecurityOptions;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class HttpsTest : public testing::Test {
 protected:
  HttpsTest() {
    certs_.MakeAuthority("ca");
    certs_.MakeAuthority("other");
    certs_.MakeCertificate("server", "ca", "DNS:kv.example,IP:127.0.0.1");
    certs_.MakeCertificate("client", "ca",
                           "DNS:client.example,URI:spiffe://x/y,IP:10.0.0.1,IP:::1");
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
  // Answers with the body's size and the certificate's names.
  void Start(const SecurityOptions& security, const HttpLimits& limits = {}) {
    HttpServerSettings settings;
    settings.listen = "127.0.0.1:0";
    settings.security = security;
    settings.limits = limits;
    HttpEvents events;
    events.refused = [this](absl::string_view reason) {
      MutexLock lock(mu_);
      ++refused_[std::string(reason)];
    };
    auto server = HttpServer::Start(
        settings,
        [](std::shared_ptr<HttpExchange> exchange) {
          const HttpRequest& r = exchange->request();
          HttpResponse response;
          response.body = absl::StrCat(r.body.size(), "|", absl::StrJoin(r.certificate_names, ","));
          if (r.path != "/stream") return exchange->Send(std::move(response));
          exchange->BeginStream(std::move(response));
          exchange->Write(std::string(1 << 20, 'x'));
          exchange->End(true);
        },
        events);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    port_ = server_->port();
  }
  int refused(const std::string& reason) {
    MutexLock lock(mu_);
    return refused_[reason];
  }
  std::string As(const std::string& name) const {
    return absl::StrCat(" --cert ", certs_.Cert(name), " --key ", certs_.Key(name));
  }
  // What curl prints, then "rc=" and its exit status.
  std::string Curl(const std::string& path, const std::string& args = "",
                   const std::string& authority = "ca") const {
    const std::string command =
        absl::StrCat("curl -sS --max-time 30 --cacert ", certs_.Cert(authority), " ", args,
                     " https://127.0.0.1:", port_, path, " 2>&1; echo rc=$?");
    std::FILE* pipe = popen(command.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  // Connects, says `bytes` and waits for the server to close; what it said.
  std::string Say(const std::string& bytes) const {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
    std::string answer;
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    close(fd);
    return answer;
  }

  TestCertificates certs_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
  Mutex mu_;
  std::map<std::string, int> refused_ GUARDED_BY(mu_);
};

TEST_F(HttpsTest, ServerIsVerified) {
  Start(Serving());
  EXPECT_EQ(Curl("/"), "0|rc=0\n");
  EXPECT_EQ(Curl("/", As("client")), "0|rc=0\n") << "not asked for";
  EXPECT_THAT(Curl("/", "", "other"), HasSubstr("rc=60\n"));
  EXPECT_THAT(Say("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Not(HasSubstr("HTTP/1.1 200")));
  EXPECT_EQ(refused("tls"), 2) << "the client that did not trust us, and plain text";
}

TEST_F(HttpsTest, LongBodiesBothWays) {
  Start(Serving());
  const std::string file = certs_.folder() / "body";
  std::ofstream(file) << std::string(3 << 20, 'b');
  EXPECT_EQ(Curl("/", "--data-binary @" + file), "3145728|rc=0\n");
  for (const char* version : {"--http1.1", "--http1.0"}) {
    const std::string streamed = Curl("/stream", version);
    EXPECT_EQ(streamed.size(), (1 << 20) + std::string("0|rc=0\n").size()) << version;
    EXPECT_THAT(streamed.substr(streamed.size() - 6), HasSubstr("rc=0")) << version;
  }
  std::ofstream(file) << std::string(5 << 20, 'b');
  EXPECT_THAT(Curl("/", "-i -H 'Expect: 100-continue' --data-binary @" + file),
              HasSubstr("413 Payload Too Large"));
}

TEST_F(HttpsTest, ClientIsVerified) {
  Start(Serving("require"));
  EXPECT_EQ(Curl("/", As("client")), "0|client.example,spiffe://x/y,10.0.0.1,::1,clientrc=0\n");
  EXPECT_THAT(Curl("/"), Not(HasSubstr("rc=0"))) << "no certificate";
  EXPECT_THAT(Curl("/", As("stranger")), Not(HasSubstr("rc=0"))) << "of another authority";
  EXPECT_EQ(refused("tls"), 2);
}

TEST_F(HttpsTest, OptionalCertificatesAreVerifiedToo) {
  Start(Serving("optional"));
  EXPECT_THAT(Curl("/", As("client")), StartsWith("0|client.example,"));
  EXPECT_EQ(Curl("/"), "0|rc=0\n");
  EXPECT_THAT(Curl("/", As("stranger")), Not(HasSubstr("rc=0")));
}

TEST_F(HttpsTest, ReplacedCertificatesAreUsedByNewConnections) {
  Start(Serving("require"));
  ASSERT_THAT(Curl("/", As("client")), HasSubstr("rc=0"));
  certs_.MakeCertificate("server2", "other", "IP:127.0.0.1");
  // The key alone does not fit yet: the former pair stays in use.
  const auto replace = [](const std::string& from, const std::string& to) {
    std::filesystem::copy_file(from, to + ".new");
    std::filesystem::rename(to + ".new", to);
  };
  replace(certs_.Key("server2"), certs_.Key("server"));
  const Time until = SteadyClock::Get()->Now() + std::chrono::seconds(2);
  while (SteadyClock::Get()->Now() < until) ASSERT_THAT(Curl("/", As("client")), HasSubstr("rc=0"));
  replace(certs_.Cert("server2"), certs_.Cert("server"));
  replace(certs_.Cert("other"), certs_.Cert("ca"));
  const Time deadline = SteadyClock::Get()->Now() + std::chrono::seconds(60);
  std::string answer;
  do {
    answer = Curl("/", As("stranger"), "other");
  } while (answer.find("rc=0") == std::string::npos && SteadyClock::Get()->Now() < deadline);
  EXPECT_THAT(answer, HasSubstr("rc=0"));
  EXPECT_THAT(Curl("/", As("client"), "other"), Not(HasSubstr("rc=0"))) << "the old authority";
}

TEST_F(HttpsTest, HostileHandshakes) {
  HttpLimits limits;
  limits.header_timeout = std::chrono::milliseconds(200);
  Start(Serving(), limits);
  EXPECT_EQ(Say(""), "") << "says nothing";
  EXPECT_EQ(Say(std::string("\x16\x03\x01\x02\x00\x01", 6)), "") << "begins a handshake";
  EXPECT_EQ(refused("slow"), 2);
  for (const std::string& garbage :
       {std::string(1 << 15, '\xff'), std::string("\x16\x03\x01\xff\xff", 5) + std::string(4096, 0),
        std::string("\x80\x2e\x01\x00\x02", 5) + std::string(100, 'a')}) {
    Say(garbage);
  }
  EXPECT_EQ(refused("tls") + refused("slow"), 5);
  EXPECT_EQ(Curl("/"), "0|rc=0\n") << "and the others are served";
}

TEST_F(HttpsTest, BadOptionsDoNotServe) {
  HttpServerSettings settings;
  settings.listen = "127.0.0.1:0";
  settings.security = Serving();
  settings.security.tls_key = certs_.Key("client");
  EXPECT_EQ(HttpServer::Start(settings, nullptr, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HttpsTest, MetricsAreTheOperators) {
  MetricRegistry registry;
  MetricsServerSettings settings;
  settings.listen = "127.0.0.1:0";
  settings.security = Serving("optional");
  settings.ask = true;
  EXPECT_EQ(MetricsServer::Start(settings, &registry).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "no auth file";
  settings.security.auth_file = certs_.folder().Write(
      "auth", absl::StrCat("cert client.example roles=operator\n",
                           "token sha256:", auth::TokenDigest("op"), " roles=operator name=op\n",
                           "token sha256:", auth::TokenDigest("c"), " roles=client name=c\n"));
  const auto server = MetricsServer::Start(settings, &registry);
  ASSERT_TRUE(server.ok()) << server.status();
  port_ = (*server)->port();
  EXPECT_THAT(Curl("/metrics", "-i"), HasSubstr("HTTP/1.1 401 Unauthorized"));
  EXPECT_THAT(Curl("/metrics", "-i -H 'Authorization: Bearer c'"), HasSubstr("403 Forbidden"));
  EXPECT_THAT(Curl("/metrics", "-i -H 'Authorization: Bearer op' -H 'Authorization: Bearer c'"),
              HasSubstr("400 Bad Request"));
  EXPECT_THAT(Curl("/metrics", "-H 'Authorization: Bearer op'"), HasSubstr("rc=0"));
  const std::string text = Curl("/metrics", As("client"));
  EXPECT_THAT(text, HasSubstr("oscarkv_metrics_http_requests_total{code=\"200\"} 1"));
  EXPECT_THAT(text, HasSubstr("oscarkv_auth_refused_total{code=\"UNAUTHENTICATED\"} 1"));
  EXPECT_THAT(text, HasSubstr("oscarkv_auth_refused_total{code=\"PERMISSION_DENIED\"} 1"));
  EXPECT_THAT(text, HasSubstr("oscarkv_metrics_http_refused_total{reason=\"malformed\"} 1"));
}

TEST_F(HttpsTest, CertificateDatesAreExported) {
  MetricRegistry registry;
  auth::CertificateWatch watch(Serving(), &registry);
  const auto seconds = [&](const char* file, const char* name) {
    watch.Refresh();
    return registry.AddGauge("oscarkv_tls_certificate_expires_seconds", "", {"file", "name"})
        .With({file, name})
        .value();
  };
  constexpr double kDay = 86400;
  EXPECT_NEAR(seconds("tls-cert", "server"), 2 * kDay, 600);
  EXPECT_NEAR(seconds("tls-ca", "ca"), 2 * kDay, 600);
  certs_.MakeCertificate("longer", "ca", "IP:127.0.0.1", /*days=*/9);
  std::filesystem::rename(certs_.Cert("longer"), certs_.Cert("server"));
  const Time deadline = SteadyClock::Get()->Now() + std::chrono::seconds(30);
  while (seconds("tls-cert", "longer") == 0 && SteadyClock::Get()->Now() < deadline) {
  }
  EXPECT_NEAR(seconds("tls-cert", "longer"), 9 * kDay, 600);
  EXPECT_TRUE(std::isnan(seconds("tls-cert", "server"))) << "it is gone";
}

}  // namespace
}  // namespace oscarkv
