// Whether a cluster is whole: what somebody waits for who restarts its processes one after the
// other.
#pragma once

#include <string>

#include "common/clock.h"
#include "oscarkv/v1/gateway.pb.h"

namespace oscarkv::cli {

// What a gateway's status lacks of a whole cluster: a sentence, empty when nothing. All KV nodes
// and workers are up and used, and every node that knows the others has compared its blocks with
// theirs within `waited` and found no copy missing. A node's older figures say nothing about what
// was restarted since; 0 accepts them.
std::string MissingForWhole(const v1::GetStatusResponse& status, Duration waited);

}  // namespace oscarkv::cli
