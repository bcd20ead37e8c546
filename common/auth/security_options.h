// The options of every role and tool that say who may connect, and as whom this process connects.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/options.h"

namespace oscarkv::auth {

// Serving with TLS needs tls_cert and tls_key. Connections to other processes use TLS when tls_ca
// is set, and present the certificate if there is one. All files are read again when they were
// replaced.
struct SecurityOptions {
  std::string tls_cert, tls_key;  // PEM: certificate chain and private key
  std::string tls_ca;             // PEM: who signs the certificates of peers
  std::string tls_client_auth = "none";
  std::string tls_peer_name;
  std::string auth_file;
  std::string token_file;

  bool serves_tls() const { return !tls_cert.empty(); }
  bool connects_with_tls() const { return !tls_ca.empty(); }
};

// Of a process that listens, resp. of a tool that only connects.
void AddServerSecurityOptions(OptionTable* table, SecurityOptions* options);
void AddClientSecurityOptions(OptionTable* table, SecurityOptions* options);

// The options belong together, the files are there, the key is the certificate's, nothing has
// expired. kInvalidArgument names the option.
absl::Status CheckSecurityOptions(const SecurityOptions& options);

// "--tls-cert", FILE, ... for a process that is started with the same security.
std::vector<std::string> SecurityArgs(const SecurityOptions& options);

// Whether nobody but this machine reaches the address "HOST:PORT".
bool IsLoopback(absl::string_view listen);

}  // namespace oscarkv::auth
