#include "attention_worker/attention_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention_worker/attention_service.h"
#include "common/status_macros.h"
#include "worker/runtime.h"
#include "worker/server.h"

namespace oscarkv::attention_worker {
namespace {

constexpr uint64_t kDerivedPoolBytes = uint64_t{2} << 30;
constexpr uint64_t kDerivedContexts = 8;

// Blocks that sequences of full length need, as many as fit kDerivedPoolBytes, at least one, at
// most kDerivedContexts.
uint64_t FullLengthSlots(const ModelConfig& config, uint64_t slot_bytes) {
  const uint64_t one = (config.max_position_embeddings + kBlockTokens - 1) / kBlockTokens + 1;
  return one * std::clamp<uint64_t>(kDerivedPoolBytes / (one * slot_bytes), 1, kDerivedContexts);
}

}  // namespace

void AddOptions(OptionTable* table, AttentionServerOptions* o) {
  worker::AddWorkerOptions(table, &o->worker);
  table->AddInt("max-batch", &o->engine.max_batch, 1, 4096, "Sequences that are decoded at once");
  table->AddInt("max-queue", &o->engine.max_queue, 1, 1 << 20,
                "Sequences that may wait; more are refused");
  table->AddInt("chunk", &o->engine.chunk_tokens, kBlockTokens, 1 << 16,
                "Tokens whose KV was missing in the store that are recomputed between two decode "
                "steps, a multiple of 64");
}

struct AttentionServer::Impl {
  std::unique_ptr<worker::WorkerRuntime> runtime;
  std::unique_ptr<AttentionMetrics> metrics;
  std::unique_ptr<AttentionEngine> engine;
  std::unique_ptr<AttentionService> service;
  std::unique_ptr<rpc::Server> server;
};

absl::StatusOr<std::unique_ptr<AttentionServer>> AttentionServer::Start(
    const AttentionServerOptions& options, MetricRegistry* metrics,
    std::function<void(double)> progress) {
  const AttentionEngineOptions& engine = options.engine;
  if (engine.chunk_tokens % kBlockTokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--chunk=", engine.chunk_tokens, ": expected a multiple of ", kBlockTokens));
  }
  const auto defaults = [&engine](const ModelConfig& config, bool coded) {
    const kernels::KvShape shape = config.kv_shape();
    // A coded sequence holds sink, window, the block that it fills, and one more while a put still
    // reads what left the window.
    const uint64_t windows =
        engine.max_batch * (kSinkBlocks + kWindowBlocks + 2) + engine.chunk_tokens / kBlockTokens;
    return worker::PoolDefaults{FullLengthSlots(config, shape.PageBytes()),
                                coded ? windows : FullLengthSlots(config, shape.Bf16BlockBytes()),
                                /*more_blocks_help=*/!coded};
  };
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->runtime, worker::BuildRuntime(options.worker, "attention", metrics,
                                                       defaults, std::move(progress)));
  impl->metrics = std::make_unique<AttentionMetrics>(metrics);
  worker::WorkerRuntime& runtime = *impl->runtime;
  impl->engine = std::make_unique<AttentionEngine>(engine, runtime.runner.get(), runtime.io.get(),
                                                   runtime.fetch_pool.get(), runtime.putter.get(),
                                                   impl->metrics.get(), runtime.metrics.get());
  impl->service = std::make_unique<AttentionService>(impl->engine.get(), impl->runtime.get());
  ASSIGN_OR_RETURN(impl->server, worker::StartServer(options.worker, impl->service.get()));
  return std::unique_ptr<AttentionServer>(new AttentionServer(std::move(impl)));
}

AttentionServer::AttentionServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

AttentionServer::~AttentionServer() {
  Shutdown(Duration(0));
}

int AttentionServer::port() const {
  return impl_->server->port();
}

void AttentionServer::Shutdown(Duration drain) {
  impl_->server->Drain();
  impl_->engine->Shutdown(drain);
  impl_->server->Shutdown();
}

}  // namespace oscarkv::attention_worker
