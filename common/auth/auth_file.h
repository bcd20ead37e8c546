// The file of --auth-file: which tokens and certificates are let in, as whom, and what tenants may
// use. One entry a line:
//
//   # a comment
//   token  sha256:<64 hex digits> tenant=acme roles=client expires=2027-01-31T00:00:00Z name=ci
//   cert   gateway.example tenant=acme roles=client,operator
//   tenant acme max-running=8 tokens-per-second=2000
//
// A token is kept as its SHA-256 only: tokens are 256 random bits (`oscarkv token new`), so that
// nothing slower is needed to keep them from being guessed. `cert` names a DNS, IP or URI
// alternative name of a client certificate, or its common name. `roles` is client unless it is
// given; `expires` is RFC 3339, in UTC.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/auth/identity.h"

namespace oscarkv::auth {

inline constexpr size_t kMaxAuthFileBytes = 4 << 20;
// Of a tenant or an entry's name; letters, digits and -_.:@/ only.
inline constexpr size_t kMaxAuthNameBytes = 64;

struct AuthEntry {
  Identity identity;
  int64_t expires_unix_s = std::numeric_limits<int64_t>::max();
};

struct AuthFile {
  absl::flat_hash_map<std::string, AuthEntry> tokens;        // by lower-case hex of the SHA-256
  absl::flat_hash_map<std::string, AuthEntry> certificates;  // by name
  absl::flat_hash_map<std::string, TenantLimits> tenants;
};

// kInvalidArgument: source, line, what was expected; never the line's text, which may hold a
// secret.
absl::StatusOr<AuthFile> ParseAuthFile(absl::string_view source, absl::string_view text);

// "2027-01-31T00:00:00Z".
absl::StatusOr<int64_t> ParseUtc(absl::string_view text);

}  // namespace oscarkv::auth
