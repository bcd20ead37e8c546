// The cluster and single requests as JSON, for the console: what `oscarkv status` and `oscarkv
// trace` show, and the latencies.
#pragma once

#include <nlohmann/json.hpp>

#include "gateway/http/http_api.h"
#include "gateway/request_log.h"

namespace oscarkv::gateway {

// Asks the store's nodes: blocks for deps.status_timeout at most.
nlohmann::ordered_json StatusJson(const HttpApiDeps& deps);
nlohmann::ordered_json RecordJson(const RequestRecord& record);

}  // namespace oscarkv::gateway
