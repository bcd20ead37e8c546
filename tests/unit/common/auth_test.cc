#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/auth/auth_file.h"
#include "common/auth/authenticator.h"
#include "common/auth/certificate.h"
#include "common/auth/security_options.h"
#include "common/auth/token.h"
#include "tests/fakes/test_certificates.h"

namespace oscarkv::auth {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int64_t kNow = 1'790'000'000;  // 2026-09-21

std::string Line(absl::string_view token, absl::string_view rest) {
  return absl::StrCat("token sha256:", TokenDigest(token), " ", rest, "\n");
}

TEST(ParseAuthFile, Entries) {
  const auto file = ParseAuthFile(
      "f", absl::StrCat("# who may in\n\n", Line("t1", "tenant=acme roles=client,operator name=ci"),
                        Line("t2", "expires=2027-01-31T00:00:00Z"),
                        "\tcert  spiffe://x/worker   roles=worker \r\n",
                        "tenant acme max-running=8 tokens-per-second=2000\n"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tokens.at(TokenDigest("t1")).identity,
            (Identity{"ci", "acme", kClient | kOperator, false}));
  EXPECT_EQ(file->tokens.at(TokenDigest("t2")).expires_unix_s, 1801353600);
  EXPECT_EQ(file->tokens.at(TokenDigest("t2")).identity.roles, kClient);
  EXPECT_EQ(file->certificates.at("spiffe://x/worker").identity.roles, kWorker);
  EXPECT_EQ(file->tenants.at("acme"), (TenantLimits{8, 2000}));
}

TEST(ParseAuthFile, WrongLinesAreNamedAndNotShown) {
  const std::string digest(64, 'a');
  const struct {
    std::string line, message;
  } cases[] = {
      {"token", "token, cert or tenant, then a name"},
      {"tokens sha256:" + digest, "as the first word"},
      {"token okv_secret", "oscarkv token new"},
      {"token sha256:" + digest + "0", "64 hex digits"},
      {"token sha256:" + std::string(64, 'g'), "64 hex digits"},
      {"token sha256:" + digest + " tenant=acme tenant=b", "each name= once"},
      {"token sha256:" + digest + " tenant=", "tenant= 1 to 64"},
      {"token sha256:" + digest + " tenant=" + std::string(65, 'x'), "tenant= 1 to 64"},
      {"token sha256:" + digest + " tenant=a\x01", "tenant= 1 to 64"},
      {"token sha256:" + digest + " roles=root", "roles=client, worker or operator"},
      {"token sha256:" + digest + " roles=", "roles=client, worker or operator"},
      {"token sha256:" + digest + " expires=2027-02-31T00:00:00Z", "a time such as"},
      {"token sha256:" + digest + " expires=soon", "a time such as"},
      {"token sha256:" + digest + " secret", "name=value"},
      {"token sha256:" + digest + " color=secret", "tenant=, roles=, expires= or name="},
      {"token sha256:" + digest + "\ntoken sha256:" + digest, "each token once"},
      {"cert a\ncert a", "each certificate name once"},
      {"tenant a\ntenant a", "each tenant once"},
      {"tenant a max-running=-1", "max-running= a number"},
      {"tenant a tokens-per-second=9999999999999", "tokens-per-second= a number"},
      {"tenant a burst=1", "max-running= or tokens-per-second="},
  };
  for (const auto& c : cases) {
    const auto file = ParseAuthFile("f", c.line);
    ASSERT_FALSE(file.ok()) << c.line;
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(c.message)) << c.line;
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("f, line ")) << c.line;
    EXPECT_THAT(std::string(file.status().message()), Not(HasSubstr("secret"))) << c.line;
  }
  EXPECT_FALSE(ParseAuthFile("f", std::string(kMaxAuthFileBytes + 1, '#')).ok());
}

TEST(Token, IsRandomAndPrintable) {
  const auto a = NewToken(), b = NewToken();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(*a, *b);
  EXPECT_EQ(a->size(), 47);
  EXPECT_THAT(*a, testing::MatchesRegex("okv_[A-Za-z0-9_-]+"));
}

TEST(TokenSource, ReadsAgainWhenReplaced) {
  TemporaryFolder folder;
  FakeClock clock;
  const std::string path = folder.Write("token", "first\n");
  const auto source = TokenSource::Open(path, &clock);
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->Header(), "Bearer first");
  folder.Write("token", "second\n");
  EXPECT_EQ((*source)->Header(), "Bearer first") << "looked at once a second";
  clock.Advance(std::chrono::seconds(1));
  EXPECT_EQ((*source)->Header(), "Bearer second");
  std::filesystem::remove(path);
  clock.Advance(std::chrono::seconds(1));
  EXPECT_EQ((*source)->Header(), "Bearer second");
}

TEST(TokenSource, RefusesWhatIsNoToken) {
  TemporaryFolder folder;
  for (const char* text : {"", "\n", "two words\n", "two\nlines\n"})
    EXPECT_FALSE(TokenSource::Open(folder.Write("token", text)).ok()) << text;
  EXPECT_FALSE(TokenSource::Open(folder.Write("token", std::string(600, 'x'))).ok());
  EXPECT_FALSE(TokenSource::Open(folder / "missing").ok());
  EXPECT_FALSE(TokenSource::Open(folder / "").ok()) << "a folder";
}

class AuthenticatorTest : public testing::Test {
 protected:
  void Open(const std::string& text) {
    auto opened =
        Authenticator::Open(folder_.Write("auth", text), &clock_, [this] { return now_; });
    ASSERT_TRUE(opened.ok()) << opened.status();
    auth_ = *opened;
  }
  TemporaryFolder folder_;
  FakeClock clock_;
  int64_t now_ = kNow;
  std::shared_ptr<Authenticator> auth_;
};

TEST_F(AuthenticatorTest, Bearer) {
  Open(Line("good", "tenant=acme") + Line("old", "expires=2026-01-01T00:00:00Z name=o"));
  EXPECT_EQ(auth_->Bearer("Bearer good")->tenant, "acme");
  EXPECT_EQ(auth_->Bearer("bearer  good")->tenant, "acme");
  const struct {
    std::string header, message;
  } cases[] = {
      {"", "not \"Bearer TOKEN\""},       {"Basic Z29vZA==", "not \"Bearer TOKEN\""},
      {"Bearer ", "wrong length"},        {"Bearer " + std::string(600, 'x'), "wrong length"},
      {"Bearer Good", "unknown"},         {"Bearer good,good", "unknown"},
      {"Bearer old", "'o' have expired"},
  };
  for (const auto& c : cases) {
    const auto refused = auth_->Bearer(c.header);
    EXPECT_TRUE(absl::IsUnauthenticated(refused.status())) << c.header;
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(c.message));
  }
}

TEST_F(AuthenticatorTest, RolesAndCertificates) {
  Open(Line("c", "") + Line("op", "roles=operator") +
       "cert gateway.example roles=worker\ncert 10.0.0.1 tenant=t\n");
  EXPECT_TRUE(auth_->Check("Bearer c", {}, kClient).ok());
  EXPECT_TRUE(auth_->Check("Bearer c", {}, kClient | kOperator).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(auth_->Check("Bearer c", {}, kWorker).status()));
  EXPECT_TRUE(auth_->Check("", {"x", "gateway.example"}, kWorker).ok());
  EXPECT_EQ(auth_->Check("", {"10.0.0.1"}, kClient)->tenant, "t");
  EXPECT_TRUE(absl::IsUnauthenticated(auth_->Check("", {"x"}, kClient).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(auth_->Check("", {}, kClient).status()));
  // A wrong token is not made good by a certificate.
  EXPECT_TRUE(absl::IsUnauthenticated(auth_->Check("Bearer x", {"10.0.0.1"}, kClient).status()));
}

TEST_F(AuthenticatorTest, RevokedAndAddedWithinASecond) {
  Open(Line("a", ""));
  folder_.Write("auth", Line("b", "") + "tenant t max-running=2\n");
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_FALSE(auth_->Bearer("Bearer a").ok());
  EXPECT_TRUE(auth_->Bearer("Bearer b").ok());
  EXPECT_EQ(auth_->LimitsOf("t", {5, 5}), (TenantLimits{2, 0}));
  EXPECT_EQ(auth_->LimitsOf("u", {5, 5}), (TenantLimits{5, 5}));
}

TEST_F(AuthenticatorTest, ABadFileChangesNothing) {
  Open(Line("a", ""));
  folder_.Write("auth", "token nonsense\n");
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(auth_->Bearer("Bearer a").ok());
  std::filesystem::remove(folder_ / "auth");
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(auth_->Bearer("Bearer a").ok());
  EXPECT_FALSE(auth_->Bearer("Bearer b").ok());
}

TEST(Identity, WorkersActForEveryTenant) {
  EXPECT_TRUE((Identity{"w", "", kWorker, false}).MayActFor("any"));
  EXPECT_TRUE((Identity{"c", "t", kClient, false}).MayActFor("t"));
  EXPECT_FALSE((Identity{"c", "t", kClient | kOperator, false}).MayActFor("u"));
  EXPECT_FALSE((Identity{"c", "t", kClient, false}).MayActFor(""));
}

TEST(SecurityOptions, WhatDoesNotBelongTogetherIsRefused) {
  TestCertificates certs;
  certs.MakeAuthority("ca");
  certs.MakeCertificate("a", "ca", "IP:127.0.0.1");
  certs.MakeCertificate("b", "ca", "IP:127.0.0.1");
  certs.MakeCertificate("old", "ca", "IP:127.0.0.1", -1);
  const std::string garbage = certs.folder().Write("garbage", "-----BEGIN CERTIFICATE-----\nxx\n");
  SecurityOptions good;
  good.tls_cert = certs.Cert("a");
  good.tls_key = certs.Key("a");
  good.tls_ca = certs.Cert("ca");
  good.tls_client_auth = "require";
  good.auth_file = certs.folder().Write("auth", "");
  good.token_file = certs.folder().Write("token", "t");
  EXPECT_TRUE(CheckSecurityOptions(good).ok()) << CheckSecurityOptions(good);
  EXPECT_TRUE(CheckSecurityOptions({}).ok());

  const struct {
    std::string SecurityOptions::*field;
    std::string value, message;
  } cases[] = {
      {&SecurityOptions::tls_key, "", "--tls-key is missing"},
      {&SecurityOptions::tls_cert, "", "--tls-cert is missing"},
      {&SecurityOptions::tls_key, certs.Key("b"), "the private key is not the certificate's"},
      {&SecurityOptions::tls_key, garbage, "expected a private key in PEM"},
      {&SecurityOptions::tls_cert, garbage, "expected a certificate in PEM"},
      {&SecurityOptions::tls_cert, "/nonexistent", "--tls-cert=/nonexistent: No such file"},
      {&SecurityOptions::tls_ca, garbage, "--tls-ca="},
      {&SecurityOptions::tls_ca, certs.Key("a"), "expected certificates in PEM"},
      {&SecurityOptions::tls_ca, "", "needs --tls-cert, --tls-key and --tls-ca"},
      {&SecurityOptions::auth_file, "/nonexistent", "--auth-file=/nonexistent"},
      {&SecurityOptions::token_file, garbage, "--token-file="},
  };
  for (const auto& c : cases) {
    SecurityOptions bad = good;
    bad.*c.field = c.value;
    EXPECT_THAT(std::string(CheckSecurityOptions(bad).message()), HasSubstr(c.message));
  }
  SecurityOptions old = good;
  old.tls_cert = certs.Cert("old");
  old.tls_key = certs.Key("old");
  EXPECT_THAT(std::string(CheckSecurityOptions(old).message()), HasSubstr("expired on"));
  SecurityOptions lonely;
  lonely.tls_peer_name = "x";
  EXPECT_THAT(std::string(CheckSecurityOptions(lonely).message()), HasSubstr("--tls-ca"));
}

TEST(SecurityOptions, ArgsSetTheSame) {
  SecurityOptions in{"c", "k", "ca", "optional", "peer", "auth", "token"}, out;
  OptionTable table;
  AddServerSecurityOptions(&table, &out);
  const std::vector<std::string> args = SecurityArgs(in);
  ASSERT_EQ(args.size(), 2 * table.rows().size());
  for (size_t i = 0; i < args.size(); i += 2)
    ASSERT_TRUE(table.Set(args[i].substr(2), args[i + 1]).ok()) << args[i];
  EXPECT_EQ(SecurityArgs(out), args);
}

TEST(IsLoopback, Addresses) {
  for (const char* yes : {"127.0.0.1:1", "127.9.9.9:0", "localhost:7400", "[::1]:7400"})
    EXPECT_TRUE(IsLoopback(yes)) << yes;
  for (const char* no : {"0.0.0.0:1", "[::]:1", "10.0.0.1:7400", "kv-0.kv:7401", ":7400"})
    EXPECT_FALSE(IsLoopback(no)) << no;
}

}  // namespace
}  // namespace oscarkv::auth
