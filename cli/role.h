// The life of a role process: logs, metrics endpoint, ready file, signals, orderly shutdown.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/options.h"

namespace oscarkv::cli {

struct RoleOptions {
  std::string log_level = "info";
  std::string metrics_listen = "127.0.0.1:0";
  bool metrics_tls = true;
  std::string metrics_auth = "none";
  std::string ready_file;
  Duration drain_timeout = std::chrono::seconds(5);
};
// drains: whether the role has requests under way that may end before it stops.
void AddRoleOptions(OptionTable* table, RoleOptions* options, bool drains);

// Where a role listens; 0: it does not.
struct RolePorts {
  int grpc = 0;
  int http = 0;
};

// A running server.
struct RunningRole {
  RolePorts ports;
  std::function<void(Duration drain)> shutdown;  // orderly; returns when all is done
};

// Call before any thread is started: SIGTERM and SIGINT then wait for WaitForStopSignal instead of
// killing the process.
void BlockStopSignals();
// Blocks until SIGTERM or SIGINT. A second one exits at once.
void WaitForStopSignal();

// Starts the role, serves metrics, writes the ready file ("grpc=PORT\nmetrics=PORT\npid=PID\n", and
// "http=PORT\n" where there is one, by rename) when all is up, waits for a stop signal, shuts down.
// `security` is that of the role's ports, by which /metrics is served, too.
absl::Status RunRole(const std::string& role, const RoleOptions& options,
                     const auth::SecurityOptions& security,
                     const std::function<absl::StatusOr<RunningRole>(MetricRegistry*)>& start);

absl::Status WriteReadyFile(const std::string& path, const RolePorts& ports, int metrics_port);

}  // namespace oscarkv::cli
