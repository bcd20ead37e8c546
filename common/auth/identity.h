// Who a caller is: what a bearer token or a certificate's name stands for in the file of
// --auth-file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace oscarkv::auth {

// A set of them is the union of bits. A client asks for answers, in the name of its one tenant. A
// worker is a process of the cluster (gateways too): it acts for every tenant. An operator sees how
// the cluster is.
using Roles = uint8_t;
inline constexpr Roles kClient = 1, kWorker = 2, kOperator = 4;
inline constexpr Roles kAllRoles = kClient | kWorker | kOperator;
std::string RolesText(Roles roles);  // "client,operator"

// What a tenant may use of a gateway; 0: no limit.
struct TenantLimits {
  int max_running = 0;            // requests at once, those that wait included
  int64_t tokens_per_second = 0;  // of prompts and answers, over a burst of ten seconds
  bool operator==(const TenantLimits&) const = default;
};

struct Identity {
  std::string name;    // for logs; never the secret
  std::string tenant;  // "" is the default tenant
  Roles roles = 0;
  bool everyone = false;  // no authentication is configured: all may do all

  bool Has(Roles any) const { return (roles & any) != 0; }
  bool MayActFor(absl::string_view other) const {
    return everyone || Has(kWorker) || other == tenant;
  }
  bool operator==(const Identity&) const = default;
};

}  // namespace oscarkv::auth
