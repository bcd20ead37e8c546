// A prefill worker as a whole: model, store client, engine, gRPC server.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "common/options.h"
#include "prefill_worker/prefill_engine.h"
#include "worker/options.h"

namespace oscarkv::prefill_worker {

struct PrefillServerOptions {
  worker::WorkerOptions worker;
  PrefillEngineOptions engine;
  std::string window_miss = "recompute";
  std::string fetch_policy = "measured";
};
// Rows for all of them.
void AddOptions(OptionTable* table, PrefillServerOptions* options);

class PrefillServer {
 public:
  // Serves once this returned. `metrics` outlives the server. `progress`: share of the weights
  // loaded, 0..1; may be empty.
  static absl::StatusOr<std::unique_ptr<PrefillServer>> Start(
      const PrefillServerOptions& options, MetricRegistry* metrics,
      std::function<void(double)> progress = {});
  ~PrefillServer();

  int port() const;
  // Refuses new prompts; those under way may end within `drain`, then are ended with UNAVAILABLE.
  // Blocks; may be called again.
  void Shutdown(Duration drain);

 private:
  struct Impl;
  explicit PrefillServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv::prefill_worker
