// docs/metrics.md from the metrics structs of all rooms.
#pragma once

#include <string>

namespace oscarkv::cli {

std::string MetricsPage();

}  // namespace oscarkv::cli
