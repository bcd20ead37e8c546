#include "cli/role.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/metrics_server.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> StartMetrics(const RoleOptions& options,
                                                            const auth::SecurityOptions& security,
                                                            MetricRegistry* registry) {
  MetricsServerSettings settings;
  settings.listen = options.metrics_listen;
  settings.ask = options.metrics_auth == "operator";
  settings.security = security;
  settings.tls = options.metrics_tls;
  return MetricsServer::Start(settings, registry);
}

}  // namespace

void AddRoleOptions(OptionTable* table, RoleOptions* options, bool drains) {
  table->AddString("log-level", &options->log_level, "LEVEL",
                   "Log lines to write: debug, info, warn, error or off");
  table->AddString(
      "metrics-listen", &options->metrics_listen, "HOST:PORT",
      "Where Prometheus scrapes /metrics; port 0 picks a free one; empty: no endpoint");
  table->AddBool("metrics-tls", &options->metrics_tls,
                 "Serve /metrics with TLS, if there is --tls-cert, to clients as --tls-client-auth "
                 "says; --no-metrics-tls: in plain text in any case");
  table->AddChoice("metrics-auth", &options->metrics_auth, {"none", "operator"},
                   "Whether who scrapes /metrics must be an operator of --auth-file, by bearer "
                   "token or client certificate; either will do, also with "
                   "--tls-client-auth=require");
  table->AddString("ready-file", &options->ready_file, "FILE",
                   "Written when the role is up: its ports and process id, one name=value a line");
  if (!drains) return;
  table->AddDuration("drain-timeout", &options->drain_timeout, Duration(0), std::chrono::hours(1),
                     "After SIGTERM: how long requests under way may go on before they are ended");
}

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

void WaitForStopSignal() {
  const sigset_t set = StopSignals();
  int signal_number = 0;
  sigwait(&set, &signal_number);
  LogInfo("stopping", {{"signal", signal_number == SIGTERM ? "SIGTERM" : "SIGINT"}});
  // The impatient operator's second signal.
  std::thread([set] {
    int again = 0;
    sigwait(&set, &again);
    _exit(1);
  }).detach();
}

absl::Status WriteReadyFile(const std::string& path, const RolePorts& ports, int metrics_port) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = absl::StrCat(path, ".tmp");
  std::FILE* f = std::fopen(temporary.c_str(), "w");
  if (f == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("--ready-file=", path, ": cannot write it"));
  std::fprintf(f, "grpc=%d\nmetrics=%d\npid=%d\n", ports.grpc, metrics_port,
               static_cast<int>(getpid()));
  if (ports.http != 0) std::fprintf(f, "http=%d\n", ports.http);
  const bool ok = std::fclose(f) == 0 && std::rename(temporary.c_str(), path.c_str()) == 0;
  if (!ok)
    return absl::InvalidArgumentError(absl::StrCat("--ready-file=", path, ": cannot write it"));
  return absl::OkStatus();
}

absl::Status RunRole(const std::string& role, const RoleOptions& options,
                     const auth::SecurityOptions& security,
                     const std::function<absl::StatusOr<RunningRole>(MetricRegistry*)>& start) {
  BlockStopSignals();
  RETURN_IF_ERROR(InitLog(options.log_level, role));
  RETURN_IF_ERROR(auth::CheckSecurityOptions(security));
  MetricRegistry registry;
  std::unique_ptr<MetricsServer> metrics;
  int metrics_port = 0;
  if (!options.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics, StartMetrics(options, security, &registry));
    metrics_port = metrics->port();
  }
  ASSIGN_OR_RETURN(const RunningRole running, start(&registry));
  LogInfo("ready", {{"grpc_port", absl::StrCat(running.ports.grpc)},
                    {"http_port", absl::StrCat(running.ports.http)},
                    {"metrics_port", absl::StrCat(metrics_port)}});
  RETURN_IF_ERROR(WriteReadyFile(options.ready_file, running.ports, metrics_port));
  WaitForStopSignal();
  running.shutdown(options.drain_timeout);
  LogInfo("stopped");
  return absl::OkStatus();
}

}  // namespace oscarkv::cli
