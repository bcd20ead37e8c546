// The parts of a worker process, built from its options in the order in which they depend on each
// other.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "common/metrics.h"
#include "common/task_pool.h"
#include "kvstore/client/client.h"
#include "model/model_runner.h"
#include "transport/transport.h"
#include "worker/block_io.h"
#include "worker/block_put.h"
#include "worker/kv_arena.h"
#include "worker/metrics.h"
#include "worker/options.h"
#include "worker/pool_size.h"

namespace oscarkv {
class TenantClients;
namespace rpc {
class Guard;
}
}  // namespace oscarkv

namespace oscarkv::worker {

// Destroyed from the last member to the first. Everything here outlives the engine that uses it.
struct WorkerRuntime {
  std::string model_name;  // the folder's
  Sha256Digest model_fingerprint{};
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Transport> transport;     // null: data path grpc
  std::shared_ptr<const rpc::Guard> guard;  // null: everybody may call
  std::shared_ptr<TenantClients> stores;
  std::unique_ptr<KvArena> arena;
  PreparedPool device_pool;
  std::unique_ptr<BlockIo> io;
  std::unique_ptr<WorkerMetrics> metrics;
  // Apart, so that puts to a slow store do not hold up the fetches of others.
  std::unique_ptr<TaskPool> fetch_pool;
  std::unique_ptr<TaskPool> put_pool;
  std::unique_ptr<BlockPutter> putter;
};

// Loads the model and connects to the store. `role`: "prefill" or "attention". `defaults` is asked
// once the model is known. `progress`: share of the weights loaded; may be empty. kInvalidArgument
// names the option; kUnavailable: no node answers.
absl::StatusOr<std::unique_ptr<WorkerRuntime>> BuildRuntime(
    const WorkerOptions& options, const std::string& role, MetricRegistry* registry,
    const std::function<PoolDefaults(const ModelConfig&, bool coded)>& defaults,
    std::function<void(double)> progress);

}  // namespace oscarkv::worker
