#include "prefill_worker/prefill_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/worker/harness.h"

namespace oscarkv {
namespace {

using Op = FakeKvStore::Op;
using testing::HasSubstr;
using testing::IsEmpty;

// A prefill worker over a store whose state each test arranges.
class PrefillEngineTest : public testing::Test {
 protected:
  ~PrefillEngineTest() override {
    if (worker_ != nullptr) Stop();
    EXPECT_THAT(store_.violations(), IsEmpty());
    EXPECT_EQ(store_.open_reservations(), 0);
  }
  PrefillWorkerUnderTest& Worker(PrefillEngineOptions options = {.chunk_tokens = 128},
                                 int pages = 64, int blocks = 64) {
    if (worker_ == nullptr) {
      worker_ = std::make_unique<PrefillWorkerUnderTest>(model_, &store_, options, pages, blocks,
                                                         &clock_);
    }
    return *worker_;
  }
  void Stop() {
    worker_->engine.Shutdown(Duration(0));
    EXPECT_TRUE(worker_->parts.AllFree());
    EXPECT_EQ(worker_->engine.load().running, 0);
    EXPECT_EQ(worker_->engine.load().waiting, 0);
    worker_.reset();
  }
  // Runs a prompt, checks its token; returns how many tokens were computed.
  int Computed(const std::vector<int32_t>& prompt, PrefillResult* result = nullptr) {
    PrefillWorkerUnderTest& worker = Worker();
    const int before = worker.parts.runner.prefilled_tokens;
    auto r = worker.Run(prompt);
    EXPECT_TRUE(r.ok()) << r.status();
    if (!r.ok()) return -1;
    EXPECT_EQ(r->first_token.token, ExpectedTokens(model_, prompt, 1)[0]);
    const int computed = worker.parts.runner.prefilled_tokens - before;
    EXPECT_EQ(r->cached_tokens, static_cast<int>(prompt.size()) - computed);
    if (result != nullptr) *result = *std::move(r);
    return computed;
  }
  std::vector<BlockKey> Chain(const std::vector<int32_t>& prompt) {
    return ChainKeys(Worker().parts.io.NameSpace(""), prompt);
  }
  // The first answer of two prompts with a common prefix of 640 tokens, both of 700.
  std::vector<int32_t> Variant(int seed) {
    std::vector<int32_t> prompt = Prompt(700);
    const std::vector<int32_t> tail = Prompt(60, 199, seed);
    std::copy(tail.begin(), tail.end(), prompt.begin() + 640);
    return prompt;
  }

  ChainRunnerOptions model_;
  FakeClock clock_;
  FakeKvStore store_{&clock_};
  std::unique_ptr<PrefillWorkerUnderTest> worker_;
};

TEST_F(PrefillEngineTest, StoresBlocksWindowAndPartial) {
  PrefillResult result;
  EXPECT_EQ(Computed(Prompt(700), &result), 700);
  EXPECT_EQ(store_.Count(BlockKind::kBf16), 1u);
  EXPECT_EQ(store_.Count(BlockKind::kPage), 9u);
  EXPECT_EQ(store_.Count(BlockKind::kHandover), 5u);
  EXPECT_EQ(result.put.blocks, 15u);
  EXPECT_EQ(result.put.lanes, "fake");
  EXPECT_EQ(result.blocks_not_stored, 0);
}

TEST_F(PrefillEngineTest, PutsLayersWhileLaterOnesAreComputed) {
  Gate written;
  store_.set_fault([&](Op op, const BlockKey*) {
    if (op == Op::kWrite) written.Open();
    return absl::OkStatus();
  });
  // The second layer is not computed before the first one was written.
  Worker().parts.runner.after_layer = [&](int layer) {
    if (layer == 0) written.Wait();
  };
  Computed(Prompt(128));
}

TEST_F(PrefillEngineTest, PrefixHitWithWindowComputesTheSuffixOnly) {
  Computed(Variant(1));
  PrefillResult result;
  EXPECT_EQ(Computed(Variant(2), &result), 60);
  EXPECT_EQ(result.get.blocks, 10u + 4u);
  EXPECT_EQ(result.put.blocks, 1u);  // its partial block
}

TEST_F(PrefillEngineTest, SamePromptAgainComputesTheLastBlockOnly) {
  Computed(Prompt(700));
  EXPECT_EQ(Computed(Prompt(700)), 60);
  Computed(Prompt(640, 199, 3));
  EXPECT_EQ(Computed(Prompt(640, 199, 3)), 1);
  Computed(Prompt(64, 199, 4));
  EXPECT_EQ(Computed(Prompt(64, 199, 4)), 1);
}

TEST_F(PrefillEngineTest, ExpiredWindowIsRecomputed) {
  Computed(Variant(1));
  clock_.Advance(std::chrono::seconds(121));
  PrefillResult result;
  EXPECT_EQ(Computed(Variant(2), &result), 256 + 60);
  EXPECT_EQ(result.get.blocks, 10u);
  EXPECT_EQ(result.put.blocks, 4u + 1u);  // the window's copies are there again
  EXPECT_EQ(Computed(Variant(3)), 60);
  EXPECT_EQ(worker_->metrics.window_misses.value(), 1);
}

TEST_F(PrefillEngineTest, ExpiredWindowMayMeanTheWholePrompt) {
  Worker({.chunk_tokens = 128, .window_miss = WindowMiss::kAll});
  Computed(Variant(1));
  clock_.Advance(std::chrono::seconds(121));
  EXPECT_EQ(Computed(Variant(2)), 700);
}

TEST_F(PrefillEngineTest, ShortMatchNeedsNoWindow) {
  Computed(Prompt(100));
  clock_.Advance(std::chrono::seconds(121));
  EXPECT_EQ(Computed(Prompt(100)), 36);
}

TEST_F(PrefillEngineTest, TenantsDoNotShare) {
  Computed(Prompt(700));
  PrefillJob job = Worker().Job(Prompt(700));
  job.tenant = "other";
  auto result = Worker().Run(job);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->cached_tokens, 0);
}

TEST_F(PrefillEngineTest, BlockLostInTheMiddleEndsThePrefix) {
  for (const bool corrupt : {false, true}) {
    SCOPED_TRACE(corrupt);
    Computed(Prompt(700));
    const auto chain = Chain(Prompt(700));
    // It is there when the prefix is looked up, and gone (or wrong) when it is read.
    if (corrupt) {
      ASSERT_TRUE(store_.Corrupt(chain[7], 3000));
    } else {
      store_.set_fault([key = chain[7]](Op op, const BlockKey* k) {
        return op == Op::kGet && k != nullptr && *k == key ? absl::NotFoundError("evicted")
                                                           : absl::OkStatus();
      });
    }
    EXPECT_EQ(Computed(Prompt(700)),
              700 - 3 * 64);  // seven blocks left, of which the last four lack their window
    store_.set_fault(nullptr);
    EXPECT_TRUE(store_.Contains(chain[7]));  // put again
  }
}

TEST_F(PrefillEngineTest, StoreThatRefusesEveryPut) {
  for (const auto code : {absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable}) {
    for (const Op op : {Op::kStartPut, Op::kWrite, Op::kCommit}) {
      store_.set_fault([=](Op o, const BlockKey*) {
        return o == op ? absl::Status(code, "no") : absl::OkStatus();
      });
      PrefillResult result;
      EXPECT_EQ(Computed(Prompt(700), &result), 700);
      EXPECT_EQ(result.blocks_not_stored, 15);
      EXPECT_EQ(store_.size(), 0u);
    }
  }
}

// Whatever single call to the store fails, the answer is right and nothing leaks.
TEST_F(PrefillEngineTest, FaultSweep) {
  for (int n = 0;; ++n) {
    store_.Clear();
    Computed(Variant(1));
    std::atomic<int> calls{0};
    store_.set_fault([&](Op, const BlockKey*) {
      return calls++ == n ? absl::UnavailableError("the n-th call") : absl::OkStatus();
    });
    Computed(Variant(2));
    store_.set_fault(nullptr);
    EXPECT_EQ(store_.open_reservations(), 0);
    if (calls <= n) {
      EXPECT_GT(n, 20);
      break;
    }
  }
}

TEST_F(PrefillEngineTest, RejectsBadRequests) {
  PrefillWorkerUnderTest& worker = Worker();
  struct Case {
    const char* text;
    std::function<void(PrefillJob*)> spoil;
  };
  for (const Case& c : std::vector<Case>{
           {"tokens: empty", [](PrefillJob* j) { j->tokens.clear(); }},
           {"tokens[3]: 199", [](PrefillJob* j) { j->tokens[3] = 199; }},
           {"tokens[0]: -1", [](PrefillJob* j) { j->tokens[0] = -1; }},
           {"4096 of them", [](PrefillJob* j) { j->tokens.assign(4096, 1); }},
           {"temperature", [](PrefillJob* j) { j->sampling.temperature = -1; }},
           {"tenant", [](PrefillJob* j) { j->tenant.assign(1000, 'x'); }},
           {"request_id", [](PrefillJob* j) { j->request_id.assign(1000, 'x'); }},
       }) {
    PrefillJob job = worker.Job(Prompt(10));
    c.spoil(&job);
    auto result = worker.Run(job);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(c.text));
  }
}

TEST_F(PrefillEngineTest, PromptThatNeverFitsIsRefused) {
  auto result = Worker({}, 64, 8).Run(Prompt(9 * 64));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("9 bf16 blocks"));
  EXPECT_TRUE(Worker().Run(Prompt(8 * 64)).ok());
}

TEST_F(PrefillEngineTest, PromptsWaitForEachOthersSlots) {
  PrefillWorkerUnderTest& worker = Worker({.chunk_tokens = 64, .max_active = 4}, 64, 8);
  std::vector<std::future<absl::StatusOr<PrefillResult>>> outcomes(6);
  for (int i = 0; i < 6; ++i)
    ASSERT_TRUE(worker.Start(worker.Job(Prompt(8 * 64, 199, i)), &outcomes[i]).ok());
  for (int i = 0; i < 6; ++i) {
    auto result = outcomes[i].get();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->first_token.token, ExpectedTokens(model_, Prompt(8 * 64, 199, i), 1)[0]);
  }
}

TEST_F(PrefillEngineTest, QueueIsBounded) {
  Gate gate;
  PrefillWorkerUnderTest& worker = Worker({.max_active = 1, .max_queue = 2});
  worker.parts.runner.before = [&](bool, int, int) {
    gate.Wait();
    return absl::OkStatus();
  };
  std::vector<std::future<absl::StatusOr<PrefillResult>>> outcomes(4);
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(10)), &outcomes[0]).ok());
  gate.AwaitWaiter();  // the first one computes: the queue is empty
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(10)), &outcomes[1]).ok());
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(10)), &outcomes[2]).ok());
  EXPECT_EQ(worker.Start(worker.Job(Prompt(10)), &outcomes[3]).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(worker.engine.load().waiting, 2);
  gate.Open();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(outcomes[i].get().ok());
}

TEST_F(PrefillEngineTest, PromptsTakeTurnsByChunk) {
  Gate gate;
  PrefillWorkerUnderTest& worker = Worker({.chunk_tokens = 64, .max_active = 2});
  std::vector<std::pair<int, int>> chunks;  // (start, size); of the engine's thread
  worker.parts.runner.before = [&](bool, int size, int start) {
    if (chunks.empty()) gate.Wait();
    chunks.emplace_back(start, size);
    return absl::OkStatus();
  };
  std::future<absl::StatusOr<PrefillResult>> long_prompt, short_prompt;
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(64 * 4 + 1)), &long_prompt).ok());
  gate.AwaitWaiter();
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(6)), &short_prompt)
                  .ok());  // nothing to look up: ready at once
  gate.Open();
  EXPECT_TRUE(long_prompt.get().ok());
  EXPECT_TRUE(short_prompt.get().ok());
  using Chunk = std::pair<int, int>;
  EXPECT_THAT(chunks, testing::ElementsAre(Chunk{0, 64}, Chunk{64, 64}, Chunk{0, 6}, Chunk{128, 64},
                                           Chunk{192, 64}, Chunk{256, 1}));
}

TEST_F(PrefillEngineTest, EqualPromptsAtOnceShareTheirPuts) {
  Gate gate;
  PrefillWorkerUnderTest& worker = Worker({.chunk_tokens = 128, .max_active = 3});
  worker.parts.runner.before = [&](bool, int, int start) {
    if (start == 0) gate.Wait();
    return absl::OkStatus();
  };
  std::vector<std::future<absl::StatusOr<PrefillResult>>> outcomes(3);
  for (auto& outcome : outcomes) ASSERT_TRUE(worker.Start(worker.Job(Prompt(700)), &outcome).ok());
  gate.AwaitWaiter();
  gate.Open();
  uint64_t blocks = 0;
  for (auto& outcome : outcomes) {
    auto result = outcome.get();
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->blocks_not_stored, 0);
    blocks += result->put.blocks;
  }
  EXPECT_EQ(blocks, 15u);
}

TEST_F(PrefillEngineTest, RunnerErrorEndsTheRequestAndItsPuts) {
  Worker().parts.runner.before = [](bool, int, int start) {
    return start >= 256 ? absl::InternalError("broken model") : absl::OkStatus();
  };
  auto result = Worker().Run(Prompt(700));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("broken model"));
}

TEST_F(PrefillEngineTest, DeadlinePasses) {
  Gate gate;
  PrefillWorkerUnderTest& worker = Worker({.chunk_tokens = 64});
  worker.parts.runner.before = [&](bool, int, int start) {
    if (start == 64) gate.Wait();
    return absl::OkStatus();
  };
  PrefillJob job = worker.Job(Prompt(700));
  job.deadline = clock_.Now() + std::chrono::seconds(1);
  std::future<absl::StatusOr<PrefillResult>> outcome;
  ASSERT_TRUE(worker.Start(job, &outcome).ok());
  gate.AwaitWaiter();
  clock_.Advance(std::chrono::seconds(2));
  gate.Open();
  EXPECT_EQ(outcome.get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(worker.parts.runner.prefilled_tokens, 700);
}

TEST_F(PrefillEngineTest, ShutdownLetsRequestsEndOrNot) {
  PrefillWorkerUnderTest& worker = Worker();
  std::future<absl::StatusOr<PrefillResult>> outcome;
  ASSERT_TRUE(worker.Start(worker.Job(Prompt(700)), &outcome).ok());
  worker.engine.Shutdown(std::chrono::hours(1));
  EXPECT_TRUE(outcome.get().ok());
  EXPECT_EQ(worker.Run(Prompt(3)).status().code(), absl::StatusCode::kUnavailable);
  Stop();

  Gate gate;
  PrefillWorkerUnderTest& other = Worker();
  other.parts.runner.before = [&](bool, int, int) {
    gate.Wait();
    return absl::OkStatus();
  };
  ASSERT_TRUE(other.Start(other.Job(Prompt(701)), &outcome).ok());
  gate.AwaitWaiter();
  std::thread stopper([&] { other.engine.Shutdown(Duration(0)); });
  gate.Open();
  stopper.join();
  const absl::Status status = outcome.get().status();
  EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
}

// A cancelled request ends with kCancelled at whatever stage it is, and all its slots come back.
class PrefillCancelTest : public PrefillEngineTest, public testing::WithParamInterface<Op> {};

TEST_P(PrefillCancelTest, WhileTheStoreIsAsked) {
  Computed(Variant(1));
  Gate gate;
  store_.set_fault([&](Op op, const BlockKey*) {
    if (op == GetParam()) gate.Wait();
    return absl::OkStatus();
  });
  std::future<absl::StatusOr<PrefillResult>> outcome;
  auto id = Worker().Start(Worker().Job(Variant(2)), &outcome);
  ASSERT_TRUE(id.ok());
  gate.AwaitWaiter();
  Worker().engine.Cancel(*id);
  EXPECT_EQ(outcome.get().status().code(),
            absl::StatusCode::kCancelled);  // though the store has not answered
  gate.Open();
  Stop();
}
INSTANTIATE_TEST_SUITE_P(Stages, PrefillCancelTest,
                         testing::Values(Op::kMatch, Op::kGet, Op::kStartPut, Op::kWrite,
                                         Op::kCommit));

TEST_F(PrefillEngineTest, CancelWhileComputingAndWhileQueued) {
  Gate gate;
  PrefillWorkerUnderTest& worker = Worker({.chunk_tokens = 64, .max_active = 1});
  worker.parts.runner.before = [&](bool, int, int start) {
    if (start == 64) gate.Wait();
    return absl::OkStatus();
  };
  std::future<absl::StatusOr<PrefillResult>> first, second;
  auto id = worker.Start(worker.Job(Prompt(700)), &first);
  auto queued = worker.Start(worker.Job(Prompt(60)), &second);
  ASSERT_TRUE(id.ok() && queued.ok());
  gate.AwaitWaiter();
  worker.engine.Cancel(*id);
  worker.engine.Cancel(*queued);
  worker.engine.Cancel(4711);  // unknown: nothing happens
  gate.Open();
  EXPECT_EQ(first.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(second.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(worker.parts.runner.prefilled_tokens, 64);  // the chunk under way did not end
}

}  // namespace
}  // namespace oscarkv
