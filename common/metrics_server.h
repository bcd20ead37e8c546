// Metrics in Prometheus' text format, and an HTTP server of them. The only user of prometheus-cpp.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/auth/security_options.h"
#include "common/metrics.h"

namespace oscarkv {

// What a scrape gets; its media type is kMetricsMediaType.
std::string MetricsText(const MetricRegistry& registry);
inline constexpr char kMetricsMediaType[] = "text/plain; version=0.0.4; charset=utf-8";

struct MetricsServerMetrics {
  explicit MetricsServerMetrics(MetricRegistry* r)
      : requests(r->AddCounter("oscarkv_metrics_http_requests_total",
                               "Answers of the metrics port, by status code (401, 403: refused).",
                               {"code"})),
        refused(r->AddCounter("oscarkv_metrics_http_refused_total",
                              "Connections and requests that broke a limit of the metrics port: "
                              "tls, header, body, memory, connections, slow, slow_reader, "
                              "malformed.",
                              {"reason"})) {}
  MetricFamily& requests;  // {code}
  MetricFamily& refused;   // {reason}
};

struct MetricsServerSettings {
  std::string listen;              // "HOST:PORT"; port 0 picks a free one
  auth::SecurityOptions security;  // serves TLS with its certificate, if there is one
  bool tls = true;                 // false: in plain text all the same
  bool ask = false;                // whether only operators of its auth file get an answer
};

// GET /metrics on a thread of its own; another path is 404.
class MetricsServer {
 public:
  // Adds MetricsServerMetrics and CertificateMetrics to the registry, which outlives the server.
  // kUnavailable: the address cannot be bound; kInvalidArgument: security options, or `ask` without
  // an auth file.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const MetricsServerSettings& settings,
                                                              MetricRegistry* registry);
  ~MetricsServer();
  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv
