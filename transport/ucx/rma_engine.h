// One-sided gets and puts over a UCX worker.
#pragma once

#include <memory>

#include "transport/one_sided/lane.h"
#include "transport/ucx/handles.h"

namespace oscarkv {

// shared_memory: peers' memory must be mapped here (checked when a key is unpacked), and UCX does
// not notice dead peers.
absl::StatusOr<std::unique_ptr<RmaEngine>> CreateUcxRmaEngine(std::shared_ptr<UcxContext> context,
                                                              bool shared_memory);

}  // namespace oscarkv
