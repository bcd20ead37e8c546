// UcxOptions::lanes as the lane classes that it asks for.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/descriptors.h"

namespace oscarkv {

struct LaneChoice {
  LaneClass lane;
  std::string tls;  // as UCX_TLS
};

// "auto", or any of shm, posix, sysv, tcp, rdma, rc..., dc..., ud..., separated by commas.
// kInvalidArgument names what is wrong. With "auto", kRdma is in the list only if `rdma_devices`.
absl::StatusOr<std::vector<LaneChoice>> ParseLanes(absl::string_view lanes, bool rdma_devices);

}  // namespace oscarkv
