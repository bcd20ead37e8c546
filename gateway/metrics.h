// The gateway's metrics: the only place that knows their names.
#pragma once

#include "common/metrics.h"

namespace oscarkv::gateway {

struct GatewayMetrics {
  explicit GatewayMetrics(MetricRegistry* registry);

  MetricFamily& requests;         // {code}
  MetricFamily& retries;          // {stage}
  MetricFamily& resumes;          // {reason}
  MetricFamily& worker_waits;     // {outcome}
  MetricFamily& worker_failures;  // {role, endpoint}
  MetricFamily& worker_up;        // {role, endpoint}
  Metric& running;
  Metric& waiting;
  Metric& queue_age_seconds;
  Histogram& queue_seconds;
  Histogram& ttft_seconds;
  Histogram& tpot_seconds;
  Histogram& resume_seconds;
  Metric& prompt_tokens;
  Metric& cached_tokens;
  Metric& generated_tokens;
  Metric& match_failures;
  Metric& client_retries;
  Metric& blocks_not_stored;
  Histogram& compression_ratio;
  MetricFamily& http_requests;  // {route, code}
  MetricFamily& http_refused;   // {reason}
  Metric& http_connections;
};

}  // namespace oscarkv::gateway
