// Refusals at every door: gRPC and HTTP.
#pragma once

#include "common/metrics.h"

namespace oscarkv::auth {

struct AuthMetrics {
  explicit AuthMetrics(MetricRegistry* r)
      : refused(r->AddCounter("oscarkv_auth_refused_total",
                              "Calls refused for who made them (UNAUTHENTICATED) or what he may do "
                              "(PERMISSION_DENIED)",
                              {"code"})) {}
  MetricFamily& refused;  // {code}
};

}  // namespace oscarkv::auth
