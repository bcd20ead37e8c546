// Starts a role's server inside this process from command-line style arguments; what the role
// commands and `serve` share.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/role.h"

namespace oscarkv::cli {

// role: kvstore, prefill, attention or gateway. args: "--name", "value", ... of that role's options
// (not of RoleOptions).
absl::StatusOr<RunningRole> StartRole(const std::string& role, const std::vector<std::string>& args,
                                      MetricRegistry* registry);

}  // namespace oscarkv::cli
