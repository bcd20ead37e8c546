// Metrics in Prometheus' text format, and an HTTP server of them. The only user of prometheus-cpp.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics.h"

namespace oscarkv {

// What a scrape gets; its media type is text/plain; version=0.0.4.
std::string MetricsText(const MetricRegistry& registry);

class MetricsServer {
 public:
  // address: "host:port"; port 0 picks a free one. Errors: kUnavailable when the address cannot be
  // bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              const MetricRegistry* registry);
  ~MetricsServer();
  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv
