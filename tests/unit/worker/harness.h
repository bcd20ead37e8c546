// A worker's parts over a fake store, and blocking calls of its engine, for the tests of both
// workers.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "attention_worker/attention_engine.h"
#include "prefill_worker/prefill_engine.h"
#include "tests/fakes/chain_runner.h"
#include "tests/fakes/fake_kv_client.h"

namespace oscarkv {

// Opens once; whoever waits goes on then.
class Gate {
 public:
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(mu_);
    ++waiting_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
    --waiting_;
  }
  // Blocks until someone waits.
  void AwaitWaiter() {
    MutexLock lock(mu_);
    while (waiting_ == 0) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ GUARDED_BY(mu_) = false;
  int waiting_ GUARDED_BY(mu_) = 0;
};

struct WorkerParts {
  WorkerParts(const ChainRunnerOptions& options, FakeKvStore* store, int pages, int blocks,
              const Clock* clock = SteadyClock::Get())
      : clock(clock),
        client(store),
        arena(*worker::KvArena::Create(options.shape, pages, blocks, nullptr)),
        runner(options),
        io(StoreOfAll(&client), arena.get(), Identity(options), {}, clock),
        metrics(&registry, "test"),
        fetch_pool(2, "fetch"),
        put_pool(2, "put"),
        putter(&io, &put_pool) {}

  static worker::BlockIdentity Identity(const ChainRunnerOptions& options) {
    return {options.profile, false, options.shape, MakeChainCodec(options)->fingerprint(),
            Sha256Digest{7}};
  }
  bool AllFree() const {
    const KvPool& pool = arena->pool();
    return pool.free_pages() == pool.num_pages() && pool.free_blocks() == pool.num_blocks();
  }

  const Clock* const clock;
  FakeKvClient client;
  std::unique_ptr<worker::KvArena> arena;
  ChainRunner runner;
  worker::BlockIo io;
  MetricRegistry registry;
  worker::WorkerMetrics metrics;
  TaskPool fetch_pool, put_pool;
  worker::BlockPutter putter;
};

inline std::vector<int32_t> Prompt(int n, int vocab = 199, int seed = 1) {
  std::vector<int32_t> tokens(n);
  for (int i = 0; i < n; ++i)
    tokens[i] = static_cast<int32_t>((i * 7919LL + seed * 104729LL + i / 13) % vocab);
  return tokens;
}

struct PrefillWorkerUnderTest {
  PrefillWorkerUnderTest(const ChainRunnerOptions& options, FakeKvStore* store,
                         PrefillEngineOptions engine_options = {}, int pages = 128,
                         int blocks = 128, const Clock* clock = SteadyClock::Get())
      : parts(options, store, pages, blocks, clock),
        metrics(&parts.registry),
        engine(engine_options, &parts.runner, &parts.io, &parts.fetch_pool, &parts.putter, &metrics,
               &parts.metrics) {}

  PrefillJob Job(std::vector<int32_t> tokens) const {
    return {"r", std::move(tokens), {}, "", parts.clock->Now() + std::chrono::hours(1)};
  }
  // The id, and the outcome to come.
  absl::StatusOr<uint64_t> Start(PrefillJob job,
                                 std::future<absl::StatusOr<PrefillResult>>* outcome) {
    auto promise = std::make_shared<std::promise<absl::StatusOr<PrefillResult>>>();
    *outcome = promise->get_future();
    return engine.Submit(std::move(job), [promise](absl::StatusOr<PrefillResult> r) {
      promise->set_value(std::move(r));
    });
  }
  absl::StatusOr<PrefillResult> Run(PrefillJob job) {
    std::future<absl::StatusOr<PrefillResult>> outcome;
    if (auto id = Start(std::move(job), &outcome); !id.ok()) return id.status();
    return outcome.get();
  }
  absl::StatusOr<PrefillResult> Run(std::vector<int32_t> tokens) {
    return Run(Job(std::move(tokens)));
  }

  WorkerParts parts;
  PrefillMetrics metrics;
  PrefillEngine engine;
};

struct DecodeOutcome {
  absl::Status status;
  std::vector<int32_t> tokens;
  DecodeResult result;
};

// Collects the events of one sequence.
class DecodeRecorder {
 public:
  DecodeEvents Events() {
    return {[this](const SampledToken& token) {
              MutexLock lock(mu_);
              outcome_.tokens.push_back(token.token);
              changed_.NotifyAll();
            },
            [this] {
              MutexLock lock(mu_);
              ++alive_;
              changed_.NotifyAll();
            },
            [this](const absl::Status& status, const DecodeResult& result) {
              MutexLock lock(mu_);
              outcome_.status = status;
              outcome_.result = result;
              done_ = true;
              changed_.NotifyAll();
            }};
  }
  DecodeOutcome Await() {
    MutexLock lock(mu_);
    while (!done_) changed_.Wait(mu_);
    return outcome_;
  }
  // Signs of life.
  void AwaitAlive(int n) {
    MutexLock lock(mu_);
    while (!done_ && alive_ < n) changed_.Wait(mu_);
  }
  void AwaitTokens(size_t n) {
    MutexLock lock(mu_);
    while (!done_ && outcome_.tokens.size() < n) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  DecodeOutcome outcome_ GUARDED_BY(mu_);
  int alive_ GUARDED_BY(mu_) = 0;
  bool done_ GUARDED_BY(mu_) = false;
};

struct AttentionWorkerUnderTest {
  AttentionWorkerUnderTest(const ChainRunnerOptions& options, FakeKvStore* store,
                           AttentionEngineOptions engine_options = {}, int pages = 128,
                           int blocks = 128, const Clock* clock = SteadyClock::Get())
      : parts(options, store, pages, blocks, clock),
        metrics(&parts.registry),
        engine(engine_options, &parts.runner, &parts.io, &parts.fetch_pool, &parts.putter, &metrics,
               &parts.metrics) {}

  // `tokens`: prompt and first token.
  DecodeJob Job(std::vector<int32_t> tokens, int max_tokens) const {
    const int prompt = static_cast<int>(tokens.size()) - 1;
    return {"r",        std::move(tokens),
            prompt,     {},
            max_tokens, {},
            "",         parts.clock->Now() + std::chrono::hours(1)};
  }
  DecodeOutcome Run(DecodeJob job) {
    DecodeRecorder recorder;
    if (auto id = engine.Submit(std::move(job), recorder.Events()); !id.ok())
      return {id.status(), {}, {}};
    return recorder.Await();
  }
  DecodeOutcome Run(std::vector<int32_t> tokens, int max_tokens) {
    return Run(Job(std::move(tokens), max_tokens));
  }

  WorkerParts parts;
  AttentionMetrics metrics;
  AttentionEngine engine;
};

}  // namespace oscarkv
