// A WorkerRuntime over a fake store, for tests.
#pragma once

#include <memory>

#include "kvstore/client/tenant_clients.h"
#include "tests/fakes/fake_kv_client.h"
#include "worker/runtime.h"

namespace oscarkv {

inline std::unique_ptr<worker::WorkerRuntime> FakeRuntime(std::unique_ptr<ModelRunner> runner,
                                                          FakeKvStore* store,
                                                          MetricRegistry* registry,
                                                          int slots = 64) {
  auto runtime = std::make_unique<worker::WorkerRuntime>();
  const kernels::KvShape shape = runner->codec().shape();
  runtime->model_name = "fake";
  runtime->model_fingerprint = Sha256Digest{7};
  runtime->stores = std::make_shared<TenantClients>(
      std::make_shared<FakeKvClient>(store),
      [store](const std::string&) { return std::make_unique<FakeKvClient>(store); }, 64);
  runtime->arena = *worker::KvArena::Create(shape, slots, slots, nullptr);
  const worker::BlockIdentity identity{
      runner->codec().profile(), runner->prefill_history() == PrefillHistory::kCanonical, shape,
      runner->codec().fingerprint(), runtime->model_fingerprint};
  runtime->runner = std::move(runner);
  runtime->io = std::make_unique<worker::BlockIo>(
      [stores = runtime->stores.get()](const std::string& tenant) { return stores->Of(tenant); },
      runtime->arena.get(), identity, worker::BlockIoOptions{}, SteadyClock::Get());
  runtime->metrics = std::make_unique<worker::WorkerMetrics>(registry, "test");
  runtime->fetch_pool = std::make_unique<TaskPool>(2, "fetch");
  runtime->put_pool = std::make_unique<TaskPool>(2, "put");
  runtime->putter =
      std::make_unique<worker::BlockPutter>(runtime->io.get(), runtime->put_pool.get());
  return runtime;
}

}  // namespace oscarkv
