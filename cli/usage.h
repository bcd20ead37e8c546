// A request's usage, for people and as JSON.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "oscarkv/v1/gateway.pb.h"

namespace oscarkv::cli {

std::string FormatUsage(const v1::Usage& usage);
nlohmann::json UsageJson(const v1::Usage& usage);
std::string FinishReasonName(v1::FinishReason reason);

}  // namespace oscarkv::cli
