// PEM files of TLS, looked at before they are used: what is wrong is said when the process starts,
// not at the first connection.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace oscarkv::auth {

// `pem`: the first certificate is ours, any others lead to its root. kInvalidArgument: no
// certificate, no key, a key of another certificate, or outside of its dates at `unix_s`.
absl::Status CheckKeyPair(absl::string_view cert_pem, absl::string_view key_pem, int64_t unix_s);
// kInvalidArgument: no certificate in it, or all have expired.
absl::Status CheckRoots(absl::string_view pem, int64_t unix_s);

}  // namespace oscarkv::auth
