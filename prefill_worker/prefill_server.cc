#include "prefill_worker/prefill_server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "prefill_worker/prefill_service.h"
#include "worker/runtime.h"
#include "worker/server.h"

namespace oscarkv::prefill_worker {

void AddOptions(OptionTable* table, PrefillServerOptions* o) {
  worker::AddWorkerOptions(table, &o->worker);
  table->AddInt(
      "chunk", &o->engine.chunk_tokens, kBlockTokens, 1 << 16,
      "Tokens of a prompt computed at a time, a multiple of 64; prompts take turns chunk by chunk");
  table->AddInt("max-active", &o->engine.max_active, 1, 1024,
                "Prompts that are fetched, computed or stored at once");
  table->AddInt("max-queue", &o->engine.max_queue, 1, 1 << 20,
                "Prompts that may wait; more are refused");
  table->AddChoice("window-miss", &o->window_miss, {"recompute", "all"},
                   "A cached prefix whose recent bf16 blocks expired: recompute its last 256 "
                   "tokens, or the whole prompt");
  table->AddChoice("fetch-policy", &o->fetch_policy, {"measured", "always"},
                   "A cached prefix: fetch it as far as that is not slower than computing it, by "
                   "what both took lately; or always. With --deterministic and --window-miss all: "
                   "always");
  table->AddFloat("fetch-margin", &o->engine.fetch.margin, 0, 100,
                  "By what share of its time computing must be faster to be chosen");
  table->AddDuration("fetch-min-wait", &o->engine.fetch.min_wait, std::chrono::milliseconds(1),
                     std::chrono::minutes(5),
                     "By how much it must be faster at least; a get is never given up sooner");
}

struct PrefillServer::Impl {
  std::unique_ptr<worker::WorkerRuntime> runtime;
  std::unique_ptr<PrefillMetrics> metrics;
  std::unique_ptr<PrefillEngine> engine;
  std::unique_ptr<PrefillService> service;
  std::unique_ptr<rpc::Server> server;
};

absl::StatusOr<std::unique_ptr<PrefillServer>> PrefillServer::Start(
    const PrefillServerOptions& options, MetricRegistry* metrics,
    std::function<void(double)> progress) {
  PrefillEngineOptions engine = options.engine;
  engine.window_miss = options.worker.deterministic || options.window_miss == "all"
                           ? WindowMiss::kAll
                           : WindowMiss::kRecompute;
  engine.fetch.measured = options.fetch_policy == "measured";
  if (engine.chunk_tokens % kBlockTokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--chunk=", engine.chunk_tokens, ": expected a multiple of ", kBlockTokens));
  }
  // Room for one prompt of full length and another of half of it: a prompt's KV stays unquantised
  // while it is computed.
  const auto defaults = [](const ModelConfig& config, bool) {
    const uint64_t slots =
        (config.max_position_embeddings + kBlockTokens - 1) / kBlockTokens * 3 / 2 + 1;
    return worker::PoolDefaults{slots, slots, /*more_blocks_help=*/true};
  };
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->runtime, worker::BuildRuntime(options.worker, "prefill", metrics, defaults,
                                                       std::move(progress)));
  impl->metrics = std::make_unique<PrefillMetrics>(metrics);
  worker::WorkerRuntime& runtime = *impl->runtime;
  impl->engine = std::make_unique<PrefillEngine>(engine, runtime.runner.get(), runtime.io.get(),
                                                 runtime.fetch_pool.get(), runtime.putter.get(),
                                                 impl->metrics.get(), runtime.metrics.get());
  impl->service = std::make_unique<PrefillService>(impl->engine.get(), impl->runtime.get());
  ASSIGN_OR_RETURN(impl->server, worker::StartServer(options.worker, impl->service.get()));
  return std::unique_ptr<PrefillServer>(new PrefillServer(std::move(impl)));
}

PrefillServer::PrefillServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PrefillServer::~PrefillServer() {
  Shutdown(Duration(0));
}

int PrefillServer::port() const {
  return impl_->server->port();
}

void PrefillServer::Shutdown(Duration drain) {
  impl_->server->Drain();
  impl_->engine->Shutdown(drain);
  impl_->server->Shutdown();
}

}  // namespace oscarkv::prefill_worker
