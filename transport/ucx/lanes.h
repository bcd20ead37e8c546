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
  std::vector<std::string> tls;  // values for UCX_TLS, the first that works is used
};

// Shared memory prefers sysv: posix segments live in /dev/shm, which containers make small. One of
// them, not both, so that the name of the lane says how the bytes travel. "auto", or any of shm,
// posix, sysv, tcp, rdma, rc..., dc..., ud..., separated by commas. kInvalidArgument names what is
// wrong. With "auto", kRdma is in the list only if `rdma_devices`.
absl::StatusOr<std::vector<LaneChoice>> ParseLanes(absl::string_view lanes, bool rdma_devices);

}  // namespace oscarkv
