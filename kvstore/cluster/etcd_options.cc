#include "kvstore/cluster/etcd_options.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/auth/security_options.h"
#include "common/auth/watched_file.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t kMaxPasswordBytes = 4096;

absl::Status CheckAccess(const EtcdAccess& a) {
  if (a.user.empty() != a.password_file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--etcd-",
                                                   a.user.empty() ? "user" : "password-file",
                                                   " is missing: expected both, or "
                                                   "neither"));
  }
  if (a.ca.empty() && !(a.cert.empty() && a.key.empty() && a.user.empty())) {
    return absl::InvalidArgumentError(
        "--etcd-cert, --etcd-key and --etcd-user need --etcd-ca: without TLS the password and what "
        "the nodes register would be there for all to read");
  }
  if (!a.user.empty()) RETURN_IF_ERROR(ReadEtcdPassword(a).status());
  auth::SecurityOptions tls;
  tls.tls_cert = a.cert;
  tls.tls_key = a.key;
  tls.tls_ca = a.ca;
  const absl::Status checked = auth::CheckSecurityOptions(tls);
  if (checked.ok()) return checked;
  // The same files under other names.
  return absl::InvalidArgumentError(
      absl::StrReplaceAll(std::string(checked.message()), {{"--tls-", "--etcd-"}}));
}

}  // namespace

void AddEtcdOptions(OptionTable* table, std::vector<std::string>* etcd, std::string* prefix,
                    EtcdAccess* access) {
  table->AddStrings("etcd", etcd, "HOST:PORT,...",
                    "Endpoints of an etcd (v3) where the KV nodes register, instead of a fixed "
                    "list; empty: none");
  table->AddString("etcd-prefix", prefix, "PATH",
                   "Where in etcd this store is: one prefix per store");
  table->AddString("etcd-ca", &access->ca, "FILE",
                   "Connect to etcd with TLS, to servers whose certificates these (PEM) have "
                   "signed; empty: in plain text");
  table->AddString("etcd-cert", &access->cert, "FILE",
                   "Client certificate in PEM to present to etcd; needs --etcd-key, --etcd-ca");
  table->AddString("etcd-key", &access->key, "FILE", "Private key of --etcd-cert in PEM");
  table->AddString("etcd-user", &access->user, "NAME",
                   "User of etcd; needs --etcd-password-file, --etcd-ca");
  table->AddString("etcd-password-file", &access->password_file, "FILE",
                   "File with the password of --etcd-user");
}

absl::StatusOr<std::string> ReadEtcdPassword(const EtcdAccess& access) {
  auto text = auth::WatchedFile(access.password_file, kMaxPasswordBytes, SteadyClock::Get()).Read();
  if (!text.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--etcd-password-file=", text.status().message()));
  }
  text->resize(std::min(text->size(), text->find_first_of("\r\n")));
  if (!text->empty()) return text;
  return absl::InvalidArgumentError(absl::StrCat("--etcd-password-file=", access.password_file,
                                                 ": expected the password in the first line"));
}

absl::Status CheckEtcdOptions(const std::vector<std::string>& etcd, const std::string& prefix,
                              const EtcdAccess& access) {
  for (const std::string& endpoint : etcd) {
    const size_t colon = endpoint.rfind(':');
    int port = 0;
    if (colon == 0 || colon == std::string::npos || absl::StrContains(endpoint, "/") ||
        !absl::SimpleAtoi(endpoint.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("--etcd has \"", endpoint, "\": expected HOST:PORT, without http://"));
    }
  }
  if (!absl::StartsWith(prefix, "/") || prefix.size() < 2 || prefix.size() > 200) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--etcd-prefix=", prefix, ": expected a path of 2 to 200 bytes that begins with /"));
  }
  return CheckAccess(access);
}

}  // namespace oscarkv
