// How a member stands in a registry: the key is prefix + "nodes/" + endpoint, the value lines of
// "name=value", which an operator can read with etcdctl. Unknown names are skipped, so that nodes
// of different versions live together.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/cluster/membership.h"

namespace oscarkv {

std::string MemberFolder(absl::string_view prefix);  // "/oscarkv/nodes/"
std::string MemberValue(const Member& member);
// `key` begins with the folder. kInvalidArgument says what was wrong; bounded, for what comes from
// the network.
absl::StatusOr<Member> ParseMemberRecord(absl::string_view folder, absl::string_view key,
                                         absl::string_view value);

}  // namespace oscarkv
