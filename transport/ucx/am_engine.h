// Active messages over a UCX worker.
#pragma once

#include <memory>

#include "transport/am/lane.h"
#include "transport/ucx/handles.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<AmEngine>> CreateUcxAmEngine(std::shared_ptr<UcxContext> context);

}  // namespace oscarkv
