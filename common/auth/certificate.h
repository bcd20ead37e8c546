// PEM files of TLS, looked at before they are used: what is wrong is said when the process starts,
// not at the first connection.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

struct x509_st;  // OpenSSL's X509

namespace oscarkv::auth {

// `pem`: the first certificate is ours, any others lead to its root. kInvalidArgument: no
// certificate, no key, a key of another certificate, or outside of its dates at `unix_s`.
absl::Status CheckKeyPair(absl::string_view cert_pem, absl::string_view key_pem, int64_t unix_s);
// kInvalidArgument: no certificate in it, or all have expired.
absl::Status CheckRoots(absl::string_view pem, int64_t unix_s);

// What a certificate proves its holder to be: its DNS, URI, mail and IP names in their order, then
// its common name. As gRPC's list of a peer's names, so that the auth file means the same on every
// port. Names with a NUL inside are left out.
std::vector<std::string> CertificateNames(const x509_st* certificate);
// Of the first certificate in `pem`; none if there is none.
std::vector<std::string> CertificateNames(absl::string_view pem);

struct CertificateDate {
  std::string name;  // the common name, or "unnamed"
  int64_t not_after_unix_s = 0;
};
// Of the certificates in `pem`, at most kMaxDates.
inline constexpr size_t kMaxDates = 64;
std::vector<CertificateDate> CertificateDates(absl::string_view pem);

}  // namespace oscarkv::auth
