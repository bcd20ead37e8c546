// A WorkerRuntime over a fake store, for tests.
#pragma once

#include <memory>

#include "tests/fakes/fake_kv_client.h"
#include "worker/runtime.h"

namespace oscarkv {

inline std::unique_ptr<worker::WorkerRuntime> FakeRuntime(std::unique_ptr<ModelRunner> runner,
                                                          FakeKvStore* store,
                                                          MetricRegistry* registry,
                                                          int slots = 64) {
  auto runtime = std::make_unique<worker::WorkerRuntime>();
  const kernels::KvShape shape = runner->config().kv_shape();
  runtime->model_name = "fake";
  runtime->model_fingerprint = Sha256Digest{7};
  runtime->client = std::make_unique<FakeKvClient>(store);
  runtime->arena = *worker::KvArena::Create(shape, slots, slots, nullptr);
  const worker::BlockIdentity identity{
      runner->codec().profile(), runner->prefill_history() == PrefillHistory::kCanonical, shape,
      runner->codec().fingerprint(), runtime->model_fingerprint};
  runtime->runner = std::move(runner);
  runtime->io =
      std::make_unique<worker::BlockIo>(runtime->client.get(), runtime->arena.get(), identity,
                                        worker::BlockIoOptions{}, SteadyClock::Get());
  runtime->metrics = std::make_unique<worker::WorkerMetrics>(registry, "test");
  runtime->fetch_pool = std::make_unique<TaskPool>(2, "fetch");
  runtime->put_pool = std::make_unique<TaskPool>(2, "put");
  runtime->putter =
      std::make_unique<worker::BlockPutter>(runtime->io.get(), runtime->put_pool.get());
  return runtime;
}

}  // namespace oscarkv
