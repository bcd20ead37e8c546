// The rotary embedding's part of a config.json, in both spellings.
#pragma once

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "model/model_config.h"

namespace oscarkv {

// `config`: the whole config.json. Old spelling: rope_theta, partial_rotary_factor and rope_scaling
// (null or {type | rope_type, factor, ...}); new: rope_parameters with all of them.
// kInvalidArgument for values out of range or spellings that contradict each other; kUnimplemented
// for a rope type or a parameter that this code does not know.
absl::StatusOr<RopeConfig> ParseRopeConfig(const nlohmann::json& config, int head_dim);

}  // namespace oscarkv
