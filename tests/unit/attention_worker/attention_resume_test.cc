// Sequences that another worker had decoded for a while: killed, or orderly handed over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention_worker/attention_engine.h"
#include "tests/unit/attention_worker/engine_fixture.h"

namespace oscarkv {
namespace {

using Op = FakeKvStore::Op;
using testing::HasSubstr;

class AttentionResumeTest : public AttentionEngineTest {
 protected:
  // Prompt and the first `answered` tokens of its answer, decoded by a worker that then went with
  // all its puts done and without a hand-over.
  std::vector<int32_t> Killed(int prompt, int answered) {
    std::vector<int32_t> tokens = Prefill(Prompt(prompt));
    if (answered > 1) {
      const DecodeOutcome outcome = Worker().Run(tokens, answered);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      tokens.insert(tokens.end(), outcome.tokens.begin(), outcome.tokens.end());
      Stop();
    }
    return tokens;
  }
  // Another worker's next tokens, checked.
  DecodeResult Resume(const std::vector<int32_t>& tokens, int prompt, int more) {
    AttentionWorkerUnderTest& worker = Worker();
    DecodeJob job = worker.Job(tokens, static_cast<int>(tokens.size()) - prompt + more);
    job.prompt_tokens = prompt;
    const DecodeOutcome outcome = worker.Run(job);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.tokens, Expected(tokens, more));
    prefilled_ = worker.parts.runner.prefilled_tokens;
    return outcome.result;
  }

  int prefilled_ = 0;
};

struct KillCase {
  const char* name;
  int prompt;
  int answered;    // tokens that the client has
  int recomputed;  // by decode steps
};

class KilledTest : public AttentionResumeTest, public testing::WithParamInterface<KillCase> {};
INSTANTIATE_TEST_SUITE_P(
    Places, KilledTest,
    testing::Values(KillCase{"PrefillOnly", 700, 1, 0}, KillCase{"FirstToken", 700, 2, 1},
                    // 704 = 11 blocks: with 4 tokens of the answer in the block it is full.
                    KillCase{"BeforeABoundary", 700, 4, 3}, KillCase{"AtABoundary", 700, 5, 0},
                    KillCase{"BehindABoundary", 700, 6, 1}, KillCase{"MidBlock", 700, 40, 35},
                    KillCase{"LastRowOfABlock", 700, 68, 63},
                    KillCase{"SecondBoundary", 700, 69, 0}, KillCase{"FarBehind", 700, 400, 11},
                    KillCase{"PromptIsWholeBlocks", 640, 10, 9},
                    KillCase{"ShortPrompt", 10, 31, 30}, KillCase{"OneTokenPrompt", 1, 63, 62},
                    KillCase{"SinkJustFull", 10, 55, 0}, KillCase{"InsideTheWindow", 10, 200, 17}),
    [](const auto& info) { return info.param.name; });

TEST_P(KilledTest, TheOtherWorkerReplaysTheLastBlock) {
  const KillCase& c = GetParam();
  for (const Profile profile : {Profile::kOscar, Profile::kBf16}) {
    model_.profile = profile;
    store_.Clear();
    const auto tokens = Killed(c.prompt, c.answered);
    const DecodeResult result = Resume(tokens, c.prompt, 150);
    EXPECT_EQ(result.recomputed_tokens, c.recomputed);
    EXPECT_EQ(prefilled_, 0);
    Stop();
  }
}

// Killed right behind a boundary: the last block's put was never committed.
TEST_F(AttentionResumeTest, GoesBackIntoTheBlockThatWasLost) {
  for (const int answered : {5, 30, 68}) {
    SCOPED_TRACE(answered);
    store_.Clear();
    const auto tokens = Killed(640, answered + 64);
    const int last = static_cast<int>(tokens.size() - 1) / 64 - 1;
    ASSERT_GE(last, 10);
    const auto chain = Chain(tokens);
    store_.Erase(chain[last]);
    store_.Erase(WindowKey(chain[last]));
    const DecodeResult result = Resume(tokens, 640, 150);
    EXPECT_EQ(result.recomputed_tokens, static_cast<int>(tokens.size()) - 1 - last * 64);
    EXPECT_EQ(prefilled_, 0);
    Stop();
  }
}

// Of the prompt's last block only the rows that prefill had left are needed.
TEST_F(AttentionResumeTest, LostBlockThatBeganInThePrompt) {
  const auto tokens = Killed(700, 30);
  const auto chain = Chain(tokens);
  store_.Erase(chain[10]);
  store_.Erase(WindowKey(chain[10]));
  const DecodeResult result = Resume(tokens, 700, 150);
  EXPECT_EQ(result.recomputed_tokens, 29);
  EXPECT_EQ(prefilled_, 0);
}

TEST_F(AttentionResumeTest, WithoutThePromptsLastRowsAPrefillMakesThem) {
  const auto tokens = Killed(700, 3);
  const auto chain = Chain(tokens);
  store_.Erase(PartialKey(Worker().parts.io.NameSpace(""), chain.back(),
                          absl::MakeConstSpan(tokens).subspan(640, 60)));
  const DecodeResult result = Resume(tokens, 700, 150);
  EXPECT_EQ(result.recomputed_tokens, 60 + 2);
  EXPECT_EQ(prefilled_, 60);
}

TEST_F(AttentionResumeTest, ExpiredHandOverBlocksAreComputedOverTheStoredPages) {
  const auto tokens = Killed(700, 40);
  clock_.Advance(std::chrono::seconds(121));
  const DecodeResult result = Resume(tokens, 700, 150);
  // From the position behind the prompt: its window and its last rows by prefill, then the answer.
  EXPECT_EQ(result.recomputed_tokens, 256 + 60 + 39);
  EXPECT_EQ(prefilled_, 256 + 60);
}

TEST_F(AttentionResumeTest, EmptyStore) {
  const auto tokens = Killed(300, 100);
  store_.Clear();
  EXPECT_EQ(Resume(tokens, 300, 150).recomputed_tokens, 399);
  EXPECT_EQ(prefilled_, 300);
}

TEST_F(AttentionResumeTest, FaultSweepOverALoadThatGoesBack) {
  for (int n = 0;; ++n) {
    store_.Clear();
    const auto tokens = Killed(360, 40);
    const auto chain = Chain(tokens);
    store_.Erase(chain[5]);
    store_.Erase(WindowKey(chain[5]));
    std::atomic<int> calls{0};
    store_.set_fault([&](Op, const BlockKey*) {
      return calls++ == n ? absl::UnavailableError("the n-th call") : absl::OkStatus();
    });
    Resume(tokens, 360, 70);
    Stop();
    store_.set_fault(nullptr);
    if (calls <= n) break;
  }
}

TEST_F(AttentionResumeTest, CancelDuringTheReplay) {
  const auto tokens = Killed(640, 60);
  AttentionWorkerUnderTest& worker = Worker();
  std::atomic<uint64_t> id{0};
  Gate submitted;
  std::atomic<int> steps{0};
  worker.parts.runner.before = [&](bool, int, int) {
    submitted.Wait();
    if (++steps == 7) worker.engine.Cancel(id);
    return absl::OkStatus();
  };
  DecodeJob job = worker.Job(tokens, 1000);
  job.prompt_tokens = 640;
  DecodeRecorder recorder;
  id = *worker.engine.Submit(job, recorder.Events());
  submitted.Open();
  const DecodeOutcome outcome = recorder.Await();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(outcome.tokens.empty());
  EXPECT_EQ(outcome.result.recomputed_tokens, 7);
}

// A drain: what runs is put to the last row, so that the next worker computes nothing.
TEST_F(AttentionResumeTest, HandedOverSequenceIsLoadedAsItWas) {
  for (const int prompt : {10, 640, 700}) {
    for (const size_t before : {1, 20, 63, 64, 65}) {
      SCOPED_TRACE(absl::StrCat(prompt, " ", before));
      store_.Clear();
      auto tokens = Prefill(Prompt(prompt));
      DecodeRecorder recorder;
      AttentionWorkerUnderTest& worker = Worker();
      DecodeJob job = worker.Job(tokens, 3000);
      ASSERT_TRUE(worker.engine.Submit(job, recorder.Events()).ok());
      recorder.AwaitTokens(before);
      worker.engine.Shutdown(Duration(0));
      const DecodeOutcome outcome = recorder.Await();
      EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("handed over"));
      EXPECT_TRUE(worker.engine.draining());
      tokens.insert(tokens.end(), outcome.tokens.begin(), outcome.tokens.end());
      Stop();
      EXPECT_EQ(Resume(tokens, prompt, 150).recomputed_tokens, 0);
      Stop();
    }
  }
}

TEST_F(AttentionResumeTest, DrainLetsSequencesEndBeforeItHandsOver) {
  const auto tokens = Prefill(Prompt(100));
  AttentionWorkerUnderTest& worker = Worker();
  Gate shut;
  worker.parts.runner.before = [&](bool, int, int) {
    shut.Wait();
    return absl::OkStatus();
  };
  DecodeRecorder recorder;
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 200), recorder.Events()).ok());
  shut.AwaitWaiter();
  std::thread shutdown([&] { worker.engine.Shutdown(std::chrono::seconds(60)); });
  shut.Open();
  const DecodeOutcome outcome = recorder.Await();
  shutdown.join();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.tokens, Expected(tokens, 199));
}

TEST_F(AttentionResumeTest, HandOverToADeadStoreEndsAllTheSame) {
  const auto tokens = Prefill(Prompt(700));
  AttentionWorkerUnderTest& worker = Worker();
  DecodeRecorder recorder;
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 3000), recorder.Events()).ok());
  recorder.AwaitTokens(3);
  store_.set_fault([](Op, const BlockKey*) { return absl::UnavailableError("gone"); });
  worker.engine.Shutdown(Duration(0));
  EXPECT_EQ(recorder.Await().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(AttentionResumeTest, SequencesThatWaitAreHandedOverAtOnce) {
  const auto tokens = Prefill(Prompt(100));
  AttentionWorkerUnderTest& worker = Worker({.max_batch = 1});
  Gate gate;
  store_.set_fault([&](Op op, const BlockKey*) {
    if (op == Op::kGet) gate.Wait();
    return absl::OkStatus();
  });
  DecodeRecorder loading, waiting;
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 50), loading.Events()).ok());
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 50), waiting.Events()).ok());
  gate.AwaitWaiter();
  std::thread shutdown([&] { worker.engine.Shutdown(Duration(0)); });
  EXPECT_EQ(loading.Await().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting.Await().status.code(), absl::StatusCode::kUnavailable);
  gate.Open();
  shutdown.join();
}

TEST_F(AttentionResumeTest, QuietSequencesGiveSignsOfLife) {
  const auto tokens = Prefill(Prompt(100));
  AttentionWorkerUnderTest& worker =
      Worker({.max_batch = 1, .alive_interval = std::chrono::milliseconds(1)});
  Gate gate;
  store_.set_fault([&](Op op, const BlockKey*) {
    if (op == Op::kGet) gate.Wait();
    return absl::OkStatus();
  });
  DecodeRecorder loading, waiting;
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 50), loading.Events()).ok());
  ASSERT_TRUE(worker.engine.Submit(worker.Job(tokens, 50), waiting.Events()).ok());
  gate.AwaitWaiter();
  for (int i = 1; i <= 3; ++i) {
    clock_.Advance(std::chrono::milliseconds(1));
    loading.AwaitAlive(i);
    waiting.AwaitAlive(i);
  }
  gate.Open();
  EXPECT_TRUE(loading.Await().status.ok());
  EXPECT_TRUE(waiting.Await().status.ok());
}

// With --deterministic: prompt of 700 tokens, 200 of the answer, blocks 10..14 in the window.
TEST_F(AttentionResumeTest, DeterministicReplayStartsWhereTheFirstMissingAnswerTokenIs) {
  AttentionWorkerUnderTest& worker = Worker();
  DecodeJob job = worker.Job(Prompt(901), 10);
  job.prompt_tokens = 700;
  const DecodeSequence seq(1, job, {}, worker::ChainNames(Sha256Digest{}),
                           &worker.parts.arena->pool(), {}, Time{});
  ASSERT_EQ(seq.position(), 900);
  const std::vector<std::pair<std::vector<int>, int>> cases = {
      {{}, 900},  {{14}, 896},      {{13, 14}, 832},    {{11}, 704},    {{10}, 700},
      {{9}, 900}, {{2, 3, 9}, 900}, {{9, 10, 14}, 700}, {{3, 12}, 768}, {{10, 11}, 700},
  };
  for (const auto& [missing, start] : cases)
    EXPECT_EQ(ReplayStart(seq, missing, /*deterministic=*/true), start)
        << testing::PrintToString(missing);
}

TEST(AddWhatItTakes, Table) {
  struct Case {
    int window;
    std::vector<int> missing, all;
  };
  for (const Case& c : std::vector<Case>{
           {10, {}, {}},
           {1, {3, 4}, {3, 4}},                          // all rows before are there
           {10, {14}, {14}},                             // attends blocks 10..13
           {10, {13}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 13}},  // attends block 9
           {10, {5}, {1, 2, 3, 4, 5}},
           {10, {1}, {1}},
           {10, {0}, {0}},
           {10, {0, 5, 12}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12}},
       }) {
    std::vector<int> missing = c.missing;
    AddWhatItTakes(c.window, &missing);
    EXPECT_EQ(missing, c.all) << testing::PrintToString(c.missing);
  }
}

}  // namespace
}  // namespace oscarkv
