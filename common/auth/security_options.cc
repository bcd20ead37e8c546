#include "common/auth/security_options.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/auth/authenticator.h"
#include "common/auth/certificate.h"
#include "common/auth/token.h"
#include "common/auth/watched_file.h"
#include "common/status_macros.h"

namespace oscarkv::auth {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

absl::StatusOr<std::string> ReadOption(absl::string_view option, const std::string& path) {
  auto text = WatchedFile(path, kMaxPemBytes, SteadyClock::Get()).Read();
  if (text.ok()) return text;
  return absl::InvalidArgumentError(absl::StrCat("--", option, "=", text.status().message()));
}

absl::Status Named(absl::string_view option, const std::string& path, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("--", option, "=", path, ": ", status.message()));
}

}  // namespace

void AddClientSecurityOptions(OptionTable* table, SecurityOptions* o) {
  table->AddString("tls-cert", &o->tls_cert, "FILE",
                   "Certificate chain in PEM to present to others; needs --tls-key");
  table->AddString("tls-key", &o->tls_key, "FILE", "Private key of --tls-cert in PEM");
  table->AddString("tls-ca", &o->tls_ca, "FILE",
                   "Connect with TLS, to servers whose certificates these (PEM) have signed");
  table->AddString("tls-peer-name", &o->tls_peer_name, "NAME",
                   "The name that servers' certificates must have, instead of the host in the "
                   "address that is connected to");
  table->AddString("token-file", &o->token_file, "FILE",
                   "File with the bearer token to present to servers");
}

void AddServerSecurityOptions(OptionTable* table, SecurityOptions* o) {
  AddClientSecurityOptions(table, o);
  table->AddChoice("tls-client-auth", &o->tls_client_auth, {"none", "optional", "require"},
                   "Whether those who connect to this process must present a certificate that "
                   "--tls-ca has signed");
  table->AddString("auth-file", &o->auth_file, "FILE",
                   "Who may call this process, as which tenant and in which role (see "
                   "docs/security.md); empty: everyone");
}

absl::Status CheckSecurityOptions(const SecurityOptions& o) {
  if (o.tls_cert.empty() != o.tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--tls-", o.tls_cert.empty() ? "cert" : "key",
                                                   " is missing: expected both, or neither"));
  }
  const int64_t now = SystemUnixSeconds();
  if (!o.tls_cert.empty()) {
    ASSIGN_OR_RETURN(const std::string cert, ReadOption("tls-cert", o.tls_cert));
    ASSIGN_OR_RETURN(const std::string key, ReadOption("tls-key", o.tls_key));
    RETURN_IF_ERROR(Named("tls-cert", o.tls_cert, CheckKeyPair(cert, key, now)));
  }
  if (!o.tls_ca.empty()) {
    ASSIGN_OR_RETURN(const std::string roots, ReadOption("tls-ca", o.tls_ca));
    RETURN_IF_ERROR(Named("tls-ca", o.tls_ca, CheckRoots(roots, now)));
  }
  if (o.tls_client_auth != "none" && (o.tls_cert.empty() || o.tls_ca.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-client-auth=", o.tls_client_auth,
                     " needs --tls-cert, --tls-key and --tls-ca (who signs the clients)"));
  }
  if (!o.tls_peer_name.empty() && o.tls_ca.empty())
    return absl::InvalidArgumentError("--tls-peer-name needs --tls-ca");
  if (!o.auth_file.empty()) {
    RETURN_IF_ERROR(Named("auth-file", o.auth_file, Authenticator::Open(o.auth_file).status()));
  }
  if (!o.token_file.empty()) {
    RETURN_IF_ERROR(Named("token-file", o.token_file, TokenSource::Open(o.token_file).status()));
  }
  return absl::OkStatus();
}

std::vector<std::string> SecurityArgs(const SecurityOptions& o) {
  std::vector<std::string> args;
  for (const auto& [name, value] :
       {std::pair<const char*, const std::string&>{"--tls-cert", o.tls_cert},
        {"--tls-key", o.tls_key},
        {"--tls-ca", o.tls_ca},
        {"--tls-peer-name", o.tls_peer_name},
        {"--token-file", o.token_file},
        {"--tls-client-auth", o.tls_client_auth},
        {"--auth-file", o.auth_file}}) {
    if (!value.empty()) args.insert(args.end(), {name, value});
  }
  return args;
}

bool IsLoopback(absl::string_view listen) {
  const size_t colon = listen.rfind(':');
  const absl::string_view host = listen.substr(0, colon);
  return host == "localhost" || absl::StartsWith(host, "127.") || host == "[::1]" ||
         absl::StartsWith(listen, "unix:");
}

}  // namespace oscarkv::auth
