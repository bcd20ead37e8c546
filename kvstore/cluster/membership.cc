#include "kvstore/cluster/membership.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr double kMinWeight = 1e-3, kMaxWeight = 1e6;

}  // namespace

absl::StatusOr<Member> ParseMember(absl::string_view text) {
  Member member;
  absl::string_view rest = text;
  if (const size_t slash = rest.rfind('/'); slash != absl::string_view::npos) {
    if (!absl::SimpleAtod(rest.substr(slash + 1), &member.weight) ||
        !(member.weight >= kMinWeight && member.weight <= kMaxWeight)) {
      return absl::InvalidArgumentError(absl::StrCat("node \"", text, "\": the weight behind / is ",
                                                     "no number from 0.001 to 1000000"));
    }
    rest = rest.substr(0, slash);
  }
  if (const size_t at = rest.rfind('@'); at != absl::string_view::npos) {
    member.zone = std::string(rest.substr(at + 1));
    if (member.zone.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("node \"", text, "\": the zone behind @ is empty"));
    }
    rest = rest.substr(0, at);
  }
  member.endpoint = std::string(rest);
  if (member.endpoint.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("node \"", text, "\": expected HOST:PORT[@ZONE][/WEIGHT]"));
  }
  return member;
}

StaticMembership::StaticMembership(std::vector<Member> members) {
  std::sort(members.begin(), members.end(),
            [](const Member& a, const Member& b) { return a.endpoint < b.endpoint; });
  members.erase(
      std::unique(members.begin(), members.end(),
                  [](const Member& a, const Member& b) { return a.endpoint == b.endpoint; }),
      members.end());
  list_ = std::make_shared<const MemberList>(MemberList{1, std::move(members)});
}

absl::StatusOr<std::unique_ptr<StaticMembership>> StaticMembership::Parse(
    const std::vector<std::string>& nodes) {
  std::vector<Member> members;
  for (const std::string& node : nodes) {
    ASSIGN_OR_RETURN(Member member, ParseMember(node));
    for (const Member& other : members) {
      if (other.endpoint == member.endpoint && !(other == member)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "node ", member.endpoint, " is there twice, with different zones or weights"));
      }
    }
    members.push_back(std::move(member));
  }
  return std::make_unique<StaticMembership>(std::move(members));
}

}  // namespace oscarkv
