#include "attention_worker/attention_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/attention_worker/engine_fixture.h"

namespace oscarkv {
namespace {

using Op = FakeKvStore::Op;
using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(AttentionEngineTest, FetchesEverythingRecomputesNothing) {
  const DecodeResult result = Decode(Prefill(Prompt(700)), 20);
  EXPECT_EQ(result.recomputed_tokens, 0);
  EXPECT_EQ(result.get.blocks, 10u + 4u + 1u);
  EXPECT_EQ(result.get.lanes, "fake");
  EXPECT_EQ(result.reason, StopReason::kLength);
  // Five coded blocks (1..5), 720 tokens in all.
  const kernels::KvShape& shape = model_.shape;
  EXPECT_EQ(result.kv_bytes_bf16, 720 * shape.Bf16BlockBytes() / 64);
  EXPECT_EQ(result.kv_bytes_stored,
            6 * shape.PageBytes() + (720 - 6 * 64) * shape.Bf16BlockBytes() / 64);
}

TEST_F(AttentionEngineTest, StoresTheBlocksThatItCompletes) {
  const auto tokens = Prefill(Prompt(700));
  Decode(tokens, 200);  // blocks 10, 11 and 12
  worker_->engine.Shutdown(Duration(0));
  auto all = tokens;
  for (int32_t token : Expected(tokens, 199)) all.push_back(token);
  const auto chain = Chain(all);
  ASSERT_EQ(chain.size(), 14u);
  for (int b = 10; b < 14; ++b) {
    EXPECT_TRUE(store_.Contains(chain[b])) << b;
    EXPECT_TRUE(store_.Contains(WindowKey(chain[b]))) << b;
  }
}

TEST_F(AttentionEngineTest, MovedSequenceRecomputesTheTokensSinceTheLastFullBlock) {
  const auto tokens = Prefill(Prompt(700));
  Decode(tokens, 200);
  Stop();
  auto all = tokens;
  for (int32_t token : Expected(tokens, 200)) all.push_back(token);
  const DecodeResult result = Decode(all, 10);  // on another worker
  EXPECT_EQ(result.recomputed_tokens, 900 % 64);
}

TEST_F(AttentionEngineTest, LostBlocksAreRecomputed) {
  struct Case {
    const char* name;
    int recomputed;
    std::function<void(const std::vector<int32_t>&, const std::vector<BlockKey>&)> spoil;
  };
  for (const Case& c : std::vector<Case>{
           {"page in the middle", 64,
            [&](const auto&, const auto&chain) { store_.Erase(chain[3]); }},
           {"corrupt page", 64,
            [&](const auto&, const auto&chain) { store_.Corrupt(chain[3], 4000); }},
           {"corrupt header", 64,
            [&](const auto&, const auto&chain) { store_.Corrupt(chain[3], 20); }},
           {"sink", 64, [&](const auto&, const auto&chain) { store_.Erase(chain[0]); }},
           {"tail", 6 * 64,
            [&](const auto&, const auto&chain) {
              for (int b = 4; b < 10; ++b) {
                store_.Erase(chain[b]);
                store_.Erase(WindowKey(chain[b]));
              }
            }},
           {"page of a window block", 0,
            [&](const auto&, const auto&chain) { store_.Erase(chain[8]); }},
           {"bf16 of a window block", 64,
            [&](const auto&, const auto&chain) { store_.Erase(WindowKey(chain[7])); }},
           {"partial block", 60,
            [&](const auto&tokens, const auto&) { store_.Erase(Partial(tokens)); }},
           {"hand-over expired", 256 + 60,
            [&](const auto&, const auto&) { clock_.Advance(std::chrono::seconds(121)); }},
           {"everything", 700, [&](const auto&, const auto&) { store_.Clear(); }},
           {"the store is gone", 700,
            [&](const auto&, const auto&) {
              store_.set_fault([](Op, const BlockKey*) { return absl::UnavailableError("gone"); });
            }},
       }) {
    SCOPED_TRACE(c.name);
    store_.set_fault(nullptr);
    store_.Clear();
    const auto tokens = Prefill(Prompt(700));
    c.spoil(tokens, Chain(tokens));
    EXPECT_EQ(Decode(tokens, 100).recomputed_tokens, c.recomputed);
    Stop();  // waits for the puts
    if (absl::string_view(c.name) == "the store is gone") continue;
    for (const BlockKey& key : Chain(tokens)) EXPECT_TRUE(store_.Contains(key));
  }
}

TEST_F(AttentionEngineTest, BlockOfAnotherKindUnderTheKeyIsRecomputed) {
  const auto tokens = Prefill(Prompt(700));
  // The header of a block says another model; its checksums are right.
  worker::BlockIdentity other = WorkerParts::Identity(model_);
  other.model_fingerprint[0] ^= 1;
  const auto chain = Chain(tokens);
  {
    PrefillWorkerUnderTest stranger(model_, &store_, {}, 64, 64, &clock_);
    worker::BlockIo io(StoreOfAll(&stranger.parts.client), stranger.parts.arena.get(), other, {},
                       &clock_);
    SequenceKv kv(&stranger.parts.arena->pool());
    ASSERT_TRUE(kv.EnsurePage(3));
    worker::ChainNames names(stranger.parts.io.NameSpace(""));
    names.Extend(tokens);
    store_.Erase(chain[3]);
    worker::BlockPutter putter(&io, &stranger.parts.put_pool);
    std::promise<worker::PutOutcome> done;
    putter
        .Start({io.Main(names, kv, 3)}, [&](worker::PutOutcome o) { done.set_value(std::move(o)); })
        ->AllReady();
    ASSERT_TRUE(done.get_future().get().statuses[0].ok());
  }
  EXPECT_EQ(Decode(tokens, 10).recomputed_tokens, 64);
}

TEST_F(AttentionEngineTest, FaultSweep) {
  const auto tokens = Prefill(Prompt(390));
  for (int n = 0;; ++n) {
    std::atomic<int> calls{0};
    store_.set_fault([&](Op, const BlockKey*) {
      return calls++ == n ? absl::UnavailableError("the n-th call") : absl::OkStatus();
    });
    Decode(tokens, 70);
    Stop();
    store_.set_fault(nullptr);
    EXPECT_EQ(store_.open_reservations(), 0);
    store_.Clear();
    Prefill(Prompt(390));
    if (calls <= n) {
      EXPECT_GT(n, 12);
      break;
    }
  }
}

TEST_F(AttentionEngineTest, ManySequencesInOneBatch) {
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 12; ++i) prompts.push_back(Prefill(Prompt(30 + 61 * i, 199, i)));
  AttentionWorkerUnderTest& worker = Worker({.max_batch = 8}, 256, 128);
  std::vector<DecodeRecorder> recorders(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_TRUE(worker.engine.Submit(worker.Job(prompts[i], 101), recorders[i].Events()).ok());
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const DecodeOutcome outcome = recorders[i].Await();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.tokens, Expected(prompts[i], 100)) << i;
    EXPECT_EQ(outcome.result.recomputed_tokens, 0) << i;
  }
  EXPECT_LT(worker.parts.runner.steps, 12 * 100);  // they shared steps
}

// Pools for about two of five sequences that grow: all answers are right, and no slot is lost.
class PreemptionTest : public AttentionEngineTest,
                       public testing::WithParamInterface<std::tuple<Profile, bool>> {};

TEST_P(PreemptionTest, YoungestYieldsAndResumes) {
  const auto [profile, store_works] = GetParam();
  model_.profile = profile;
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 5; ++i) prompts.push_back(Prefill(Prompt(300 + 50 * i, 199, i)));
  AttentionWorkerUnderTest& worker =
      Worker({.chunk_tokens = 64}, 20, profile == Profile::kBf16 ? 24 : 16);
  if (!store_works) {
    store_.set_fault([](Op, const BlockKey*) { return absl::UnavailableError("gone"); });
  }
  std::vector<DecodeRecorder> recorders(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_TRUE(worker.engine.Submit(worker.Job(prompts[i], 501), recorders[i].Events()).ok());
  }
  int preemptions = 0, recomputed = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const DecodeOutcome outcome = recorders[i].Await();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.tokens, Expected(prompts[i], 500)) << i;
    preemptions += outcome.result.preemptions;
    recomputed += outcome.result.recomputed_tokens;
    if (i == 0) {
      EXPECT_EQ(outcome.result.preemptions, 0);  // the oldest
    }
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_EQ(worker.metrics.preemptions.value(), preemptions);
  if (store_works) {
    EXPECT_EQ(recomputed, 0);  // what was preempted had been put
  }
}
INSTANTIATE_TEST_SUITE_P(Stores, PreemptionTest,
                         testing::Combine(testing::Values(Profile::kOscar, Profile::kBf16),
                                          testing::Bool()));

TEST_F(AttentionEngineTest, SequenceThatOutgrowsThePoolAloneIsRefused) {
  const auto tokens = Prefill(Prompt(300));
  AttentionWorkerUnderTest& worker = Worker({}, 7, 16);  // pages for blocks 1..7
  const DecodeOutcome outcome = worker.Run(tokens, 1000);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(outcome.tokens, Expected(tokens, static_cast<int>(outcome.tokens.size())));
  EXPECT_EQ(tokens.size() + outcome.tokens.size(),
            9u * 64);  // the token that completes block 8 found no page
  const DecodeOutcome never = worker.Run(Prompt(700), 10);
  EXPECT_EQ(never.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(never.status.message()), HasSubstr("9 pages"));
}

TEST_F(AttentionEngineTest, StopsWhereItShould) {
  const auto tokens = Prefill(Prompt(100));
  const auto expected = Expected(tokens, 20);
  {
    DecodeJob job = Worker().Job(tokens, 100);
    job.stop_tokens = {-5, expected[4]};
    const DecodeOutcome outcome = Worker().Run(job);
    const auto first = std::find(expected.begin(), expected.end(), expected[4]);
    EXPECT_EQ(outcome.result.reason, StopReason::kStopToken);
    EXPECT_EQ(outcome.tokens, std::vector<int32_t>(expected.begin(), first + 1));
  }
  {  // the first token ends it
    DecodeJob job = Worker().Job(tokens, 100);
    job.stop_tokens = {tokens.back()};
    const DecodeOutcome outcome = Worker().Run(job);
    EXPECT_EQ(outcome.result.reason, StopReason::kStopToken);
    EXPECT_THAT(outcome.tokens, IsEmpty());
  }
  {
    const DecodeOutcome outcome = Worker().Run(tokens, 1);
    EXPECT_TRUE(outcome.status.ok());
    EXPECT_EQ(outcome.result.reason, StopReason::kLength);
    EXPECT_THAT(outcome.tokens, IsEmpty());
  }
  {  // a stop token inside the prompt means nothing
    DecodeJob job = Worker().Job(tokens, 3);
    job.prompt_tokens = static_cast<int>(tokens.size());
    job.stop_tokens = {tokens.back()};
    EXPECT_EQ(Worker().Run(job).tokens,
              std::vector<int32_t>(expected.begin(), expected.begin() + 3));
  }
}

TEST_F(AttentionEngineTest, ContextEnds) {
  model_.max_context = 110;
  const auto tokens = Prefill(Prompt(100));
  const DecodeOutcome outcome = Worker().Run(tokens, 100);
  EXPECT_EQ(outcome.result.reason, StopReason::kContext);
  EXPECT_EQ(tokens.size() + outcome.tokens.size(), 110u);
}

TEST_F(AttentionEngineTest, RejectsBadRequests) {
  struct Case {
    const char* text;
    std::function<void(DecodeJob*)> spoil;
  };
  for (const Case& c : std::vector<Case>{
           {"tokens: empty", [](DecodeJob* j) { j->tokens.clear(); }},
           {"tokens[2]: 1000", [](DecodeJob* j) { j->tokens[2] = 1000; }},
           {"4097 of them", [](DecodeJob* j) { j->tokens.assign(4097, 1); }},
           {"prompt_tokens: 0", [](DecodeJob* j) { j->prompt_tokens = 0; }},
           {"prompt_tokens: 12", [](DecodeJob* j) { j->prompt_tokens = 12; }},
           {"max_tokens", [](DecodeJob* j) { j->max_tokens = 0; }},
           {"stop_tokens", [](DecodeJob* j) { j->stop_tokens.assign(5000, 1); }},
           {"top_p", [](DecodeJob* j) { j->sampling.top_p = 2; }},
           {"tenant", [](DecodeJob* j) { j->tenant.assign(1000, 'x'); }},
           {"request_id", [](DecodeJob* j) { j->request_id.assign(1000, 'x'); }},
       }) {
    DecodeJob job = Worker().Job(Prompt(11), 5);
    c.spoil(&job);
    const DecodeOutcome outcome = Worker().Run(job);
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(outcome.status.message()), HasSubstr(c.text));
  }
}

TEST_F(AttentionEngineTest, QueueIsBounded) {
  AttentionWorkerUnderTest& worker = Worker({.max_batch = 1, .max_queue = 1});
  Gate gate;
  worker.parts.runner.before = [&](bool, int, int) {
    gate.Wait();
    return absl::OkStatus();
  };
  const auto tokens = Prefill(Prompt(20));
  DecodeRecorder running, waiting, refused;
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 5), running.Events()).ok());
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 5), waiting.Events()).ok());
  const absl::Status status =
      worker.engine.Submit(worker.Job(tokens, 5), refused.Events()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  gate.Open();
  EXPECT_TRUE(running.Await().status.ok());
  EXPECT_TRUE(waiting.Await().status.ok());
}

// A batch that fails is run one by one: only the sequence that fails alone ends.
TEST_F(AttentionEngineTest, BadSequenceDoesNotTakeTheOthersWithIt) {
  const auto good = Prefill(Prompt(100, 199, 1)), bad = Prefill(Prompt(100, 199, 2));
  AttentionWorkerUnderTest& worker = Worker({.max_batch = 2});
  std::atomic<int> single{0};
  worker.parts.runner.before = [&](bool, int size, int) {
    if (size == 2) return absl::InternalError("one of them");
    return ++single == 2 ? absl::InternalError("the second") : absl::OkStatus();
  };
  Gate loaded;
  DecodeRecorder first, second;
  // Both are in the batch from the first step on: the gate holds the fetch of the first.
  std::atomic<int> gets{0};
  store_.set_fault([&](Op op, const BlockKey* key) {
    if (op != Op::kGet || key != nullptr) return absl::OkStatus();
    if (++gets == 1) {
      loaded.Wait();
    } else {
      loaded.Open();
    }
    return absl::OkStatus();
  });
  ASSERT_TRUE(worker.engine.Submit(worker.Job(good, 20), first.Events()).ok());
  ASSERT_TRUE(worker.engine.Submit(worker.Job(bad, 20), second.Events()).ok());
  const DecodeOutcome a = first.Await(), b = second.Await();
  EXPECT_NE(a.status.ok(), b.status.ok());
  EXPECT_EQ(a.tokens.size() + b.tokens.size(), 19u + (a.status.ok() ? b : a).tokens.size());
  EXPECT_EQ(a.status.ok() ? a.tokens : b.tokens, Expected(a.status.ok() ? good : bad, 19));
}

TEST_F(AttentionEngineTest, SlowStoreDoesNotHoldUpDecoding) {
  const auto quick = Prefill(Prompt(20, 199, 1)), slow = Prefill(Prompt(400, 199, 2));
  Gate gate;
  store_.set_fault([&, key = Chain(slow)[2]](Op op, const BlockKey* k) {
    if (op == Op::kGet && k != nullptr && *k == key) gate.Wait();
    return absl::OkStatus();
  });
  DecodeRecorder recorder;
  ASSERT_TRUE(Worker().engine.Submit(Worker().Job(slow, 10), recorder.Events()).ok());
  gate.AwaitWaiter();
  Decode(quick, 100);
  gate.Open();
  EXPECT_EQ(recorder.Await().tokens, Expected(slow, 9));
}

TEST_F(AttentionEngineTest, StoreThatHangsOnPutsDoesNotHoldUpDecoding) {
  const auto tokens = Prefill(Prompt(100));
  Gate gate;
  store_.set_fault([&](Op op, const BlockKey*) {
    if (op == Op::kCommit) gate.Wait();
    return absl::OkStatus();
  });
  Decode(tokens, 1500);  // 23 blocks, more than may be under way
  gate.Open();
  Stop();
}

TEST_F(AttentionEngineTest, DeadlinePasses) {
  const auto tokens = Prefill(Prompt(100));
  DecodeJob job = Worker().Job(tokens, 3000);
  job.deadline = clock_.Now() + std::chrono::seconds(1);
  std::atomic<int> steps{0};
  Worker().parts.runner.before = [&](bool, int, int) {
    if (++steps == 10) clock_.Advance(std::chrono::seconds(2));
    return absl::OkStatus();
  };
  const DecodeOutcome outcome = Worker().Run(job);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(outcome.tokens.size(), 10u);
}

TEST_F(AttentionEngineTest, CancelTakesEffectWithinAStep) {
  const auto tokens = Prefill(Prompt(100));
  DecodeRecorder recorder;
  AttentionWorkerUnderTest& worker = Worker();
  std::atomic<uint64_t> id{0};
  std::atomic<int> steps{0};
  Gate submitted;
  worker.parts.runner.before = [&](bool, int, int) {
    submitted.Wait();
    if (++steps == 7) worker.engine.Cancel(id);
    return absl::OkStatus();
  };
  id = *worker.engine.Submit(worker.Job(tokens, 3000), recorder.Events());
  submitted.Open();
  const DecodeOutcome outcome = recorder.Await();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(outcome.tokens.size(), 7u);
}

TEST_F(AttentionEngineTest, CancelWhileFetchingRecomputingAndWaiting) {
  const auto tokens = Prefill(Prompt(400));
  for (const bool recompute : {false, true}) {
    SCOPED_TRACE(recompute);
    Gate gate;
    AttentionWorkerUnderTest& worker = Worker({.max_batch = 1, .chunk_tokens = 64});
    if (recompute) {
      store_.Clear();
      worker.parts.runner.before = [&](bool, int, int) {
        gate.Wait();
        return absl::OkStatus();
      };
    } else {
      store_.set_fault([&](Op op, const BlockKey*) {
        if (op == Op::kGet) gate.Wait();
        return absl::OkStatus();
      });
    }
    DecodeRecorder active, waiting;
    auto id = worker.engine.Submit(worker.Job(tokens, 10), active.Events());
    auto other = worker.engine.Submit(worker.Job(tokens, 10), waiting.Events());
    gate.AwaitWaiter();
    worker.engine.Cancel(*other);
    worker.engine.Cancel(*id);
    if (!recompute) {  // the fetch still hangs
      EXPECT_EQ(active.Await().status.code(), absl::StatusCode::kCancelled);
    }
    gate.Open();
    EXPECT_EQ(active.Await().status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(waiting.Await().status.code(), absl::StatusCode::kCancelled);
    EXPECT_LE(worker.parts.runner.prefilled_tokens, 64);
    Stop();
    store_.set_fault(nullptr);
  }
}

TEST_F(AttentionEngineTest, ShutdownEndsWhatRuns) {
  const auto tokens = Prefill(Prompt(100));
  DecodeRecorder recorder;
  ASSERT_TRUE(Worker().engine.Submit(Worker().Job(tokens, 3900), recorder.Events()).ok());
  recorder.AwaitTokens(3);
  Worker().engine.Shutdown(Duration(0));
  EXPECT_EQ(recorder.Await().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Worker().Run(tokens, 3).status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(AttentionEngineTest, SamplingDependsOnSeedAndPositionOnly) {
  const auto tokens = Prefill(Prompt(100));
  DecodeJob job = Worker().Job(tokens, 40);
  job.sampling.temperature = 1;
  job.sampling.seed = 7;
  const auto whole = Worker().Run(job).tokens;
  ASSERT_EQ(whole.size(), 39u);
  DecodeJob rest = job;  // moved after 20 tokens
  rest.tokens.insert(rest.tokens.end(), whole.begin(), whole.begin() + 20);
  EXPECT_EQ(Worker().Run(rest).tokens, std::vector<int32_t>(whole.begin() + 20, whole.end()));
  job.sampling.seed = 8;
  EXPECT_NE(Worker().Run(job).tokens, whole);
}

}  // namespace
}  // namespace oscarkv
