#include "transport/ucx/lanes.h"

#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace oscarkv {
namespace {

constexpr char kAllRdma[] = "rc,dc,ud";

}  // namespace

absl::StatusOr<std::vector<LaneChoice>> ParseLanes(absl::string_view lanes, bool rdma_devices) {
  std::vector<LaneChoice> choices;
  if (lanes == "auto") {
    choices.push_back({LaneClass::kShm, {"sysv", "posix"}});
    if (rdma_devices) choices.push_back({LaneClass::kRdma, {kAllRdma}});
    choices.push_back({LaneClass::kTcp, {"tcp"}});
    return choices;
  }
  std::map<LaneClass, std::vector<std::string>> wanted;  // in the order of preference
  for (absl::string_view name : absl::StrSplit(lanes, ',')) {
    if (name == "shm") {
      wanted[LaneClass::kShm] = {"sysv", "posix"};
    } else if (name == "posix" || name == "sysv") {
      wanted[LaneClass::kShm].emplace_back(name);
    } else if (name == "tcp") {
      wanted[LaneClass::kTcp].emplace_back(name);
    } else if (name == "rdma") {
      wanted[LaneClass::kRdma].push_back(kAllRdma);
    } else if (absl::StartsWith(name, "rc") || absl::StartsWith(name, "dc") ||
               absl::StartsWith(name, "ud")) {
      wanted[LaneClass::kRdma].emplace_back(name);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown lane '", name, "' in '", lanes,
                       "': allowed are auto, or shm, posix, sysv, rdma, rc*, dc*, ud*, tcp, "
                       "separated by commas"));
    }
  }
  for (const auto& [lane, tls] : wanted) {
    choices.push_back(
        {lane, lane == LaneClass::kShm ? tls : std::vector<std::string>{absl::StrJoin(tls, ",")}});
  }
  return choices;
}

}  // namespace oscarkv
