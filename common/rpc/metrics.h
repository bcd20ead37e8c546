// Metrics of every role's gRPC server.
#pragma once

#include "common/metrics.h"

namespace oscarkv::rpc {

struct GuardMetrics {
  explicit GuardMetrics(MetricRegistry* r)
      : refused(r->AddCounter("oscarkv_auth_refused_total",
                              "Calls refused for who made them (UNAUTHENTICATED) or what he may do "
                              "(PERMISSION_DENIED)",
                              {"code"})) {}
  MetricFamily& refused;  // {code}
};

}  // namespace oscarkv::rpc
