// An attention worker as a whole: model, store client, engine, gRPC server.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "attention_worker/attention_engine.h"
#include "common/metrics.h"
#include "common/options.h"
#include "worker/options.h"

namespace oscarkv::attention_worker {

struct AttentionServerOptions {
  worker::WorkerOptions worker;
  AttentionEngineOptions engine;
};
// Rows for all of them.
void AddOptions(OptionTable* table, AttentionServerOptions* options);

class AttentionServer {
 public:
  // Serves once this returned. `metrics` outlives the server. `progress`: share of the weights
  // loaded, 0..1; may be empty.
  static absl::StatusOr<std::unique_ptr<AttentionServer>> Start(
      const AttentionServerOptions& options, MetricRegistry* metrics,
      std::function<void(double)> progress = {});
  ~AttentionServer();

  int port() const;
  // Refuses new sequences; those under way may end within `drain`, then are ended with UNAVAILABLE.
  // Blocks; may be called again.
  void Shutdown(Duration drain);

 private:
  struct Impl;
  explicit AttentionServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv::attention_worker
