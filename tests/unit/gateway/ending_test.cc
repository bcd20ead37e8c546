// Requests that are refused, wait, are cancelled, run out of time or meet a shutdown, at every
// stage.
#include <thread>

#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using ::testing::HasSubstr;

struct RefusedCase {
  const char* name;
  GenerateInput input;
  absl::StatusCode code;
  const char* says;
};

class EndingTest : public PipelineTest {
 protected:
  EndingTest() : PipelineTest({.admission = {.max_running = 1, .max_waiting = 1}}) {}

  enum class Stage { kWaiting, kMatching, kPrefill, kDecodeOpened, kDecoding };
  static constexpr Stage kStages[] = {Stage::kWaiting, Stage::kMatching, Stage::kPrefill,
                                      Stage::kDecodeOpened, Stage::kDecoding};

  // A request that has come as far as the stage and stays there.
  std::shared_ptr<Request> StartUpTo(Stage stage, Duration deadline = std::chrono::seconds(60)) {
    GenerateInput input;
    input.prompt_tokens.assign(64, 1);
    if (stage == Stage::kWaiting) {
      occupant_ = pipeline_->Start(input, clock_.Now() + std::chrono::hours(1), &occupant_sink_);
      EXPECT_NE(prefill_[0]->WaitForCall(0), nullptr);
    }
    if (stage == Stage::kMatching) store_.Block();
    auto request = Start(input, deadline);
    if (stage == Stage::kWaiting) {
      // Behind the other one in the executor: once this has run, the request has been put into the
      // queue.
      Flush();
      EXPECT_EQ(pipeline_->running(), 1);
      EXPECT_EQ(pipeline_->waiting(), 1);
      return request;
    }
    if (stage == Stage::kMatching) {
      store_.WaitBlocked();
      return request;
    }
    prefill_call_ = prefill_[0]->WaitForCall(0);
    if (stage == Stage::kPrefill) return request;
    prefill_call_->Reply(FirstToken(ByteToken('a')));
    decode_call_ = attention_[0]->WaitForCall(0);
    if (stage == Stage::kDecoding) decode_call_->SendTokens({ByteToken('b')});
    return request;
  }

  // Waits until the executor's threads have run what was posted before.
  void Flush() {
    Mutex mu;
    CondVar changed;
    int arrived = 0;
    const auto meet = [&] {
      MutexLock lock(mu);
      ++arrived;
      changed.NotifyAll();
      while (arrived < 2) changed.Wait(mu);
      ++arrived;
      changed.NotifyAll();
    };
    executor_->Post(meet);
    executor_->Post(meet);
    MutexLock lock(mu);
    while (arrived < 4) changed.Wait(mu);
  }

  void ExpectCancelledDownstream(Stage stage) {
    if (stage == Stage::kPrefill) {
      EXPECT_TRUE(prefill_call_->WaitCancelled());
    }
    if (stage >= Stage::kDecodeOpened) {
      EXPECT_TRUE(decode_call_->WaitCancelled());
    }
    store_.Unblock();
    if (occupant_ != nullptr) occupant_->Cancel(absl::CancelledError("end of test"));
    Flush();
    ExpectIdle();
  }

  RecordingSink occupant_sink_;
  std::shared_ptr<Request> occupant_;
  std::shared_ptr<FakePrefill> prefill_call_;
  std::shared_ptr<FakeDecode> decode_call_;
};

class StageTest : public EndingTest, public ::testing::WithParamInterface<int> {
 protected:
  Stage stage() const { return kStages[GetParam()]; }
};
constexpr const char* kStageNames[] = {"Waiting", "Matching", "Prefill", "DecodeOpened",
                                       "Decoding"};
INSTANTIATE_TEST_SUITE_P(Stages, StageTest, ::testing::Range(0, 5),
                         [](const auto& info) { return kStageNames[info.param]; });

TEST_P(StageTest, ClientCancels) {
  const auto request = StartUpTo(stage());
  request->CancelByClient();
  // At once: nothing is waited for.
  EXPECT_TRUE(sink_.finished());
  EXPECT_EQ(sink_.WaitFinished().code(), absl::StatusCode::kCancelled);
  ExpectCancelledDownstream(stage());
  EXPECT_EQ(metrics_.requests.With({"CANCELLED"}).value(), occupant_ != nullptr ? 2 : 1);
}

TEST_P(StageTest, DeadlinePasses) {
  StartUpTo(stage(), std::chrono::seconds(5));
  clock_.Advance(std::chrono::milliseconds(4999));
  pipeline_->Tick();
  EXPECT_FALSE(sink_.finished());
  clock_.Advance(std::chrono::milliseconds(1));
  pipeline_->Tick();
  EXPECT_TRUE(sink_.finished());
  const absl::Status status = sink_.WaitFinished();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  const char* where[] = {"waiting for other requests", "asking the store", "in prefill",
                         "loading for decoding", "decoding"};
  EXPECT_THAT(status.message(), HasSubstr(where[GetParam()]));
  ExpectCancelledDownstream(stage());
}

TEST_P(StageTest, ClientsTimerFiresFirst) {
  const auto request = StartUpTo(stage(), std::chrono::seconds(5));
  clock_.Advance(std::chrono::milliseconds(4998));
  request->CancelByClient();
  EXPECT_EQ(sink_.WaitFinished().code(), absl::StatusCode::kDeadlineExceeded);
  ExpectCancelledDownstream(stage());
}

TEST_P(StageTest, ShutdownEndsWhatDoesNotEndItself) {
  StartUpTo(stage());
  pipeline_->Shutdown(SteadyClock::Get()->Now());
  EXPECT_EQ(sink_.WaitFinished().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(sink_.WaitFinished().message(), HasSubstr("shutting down"));
  occupant_ = nullptr;
  ExpectCancelledDownstream(stage());
}

TEST_P(StageTest, SecondEndIsIgnored) {
  const auto request = StartUpTo(stage());
  request->CancelByClient();
  request->CancelByClient();
  request->Tick(clock_.Now() + std::chrono::hours(9));
  if (prefill_call_ != nullptr) prefill_call_->Reply(FirstToken(ByteToken('a')));
  if (decode_call_ != nullptr) decode_call_->SendTokens({ByteToken('z')}, FinishReason::kLength);
  EXPECT_EQ(sink_.WaitFinished().code(), absl::StatusCode::kCancelled);
  ExpectCancelledDownstream(stage());
}

TEST_F(EndingTest, ShutdownLetsRunningRequestsEnd) {
  StartUpTo(Stage::kDecoding);
  std::thread shutdown(
      [&] { pipeline_->Shutdown(SteadyClock::Get()->Now() + std::chrono::minutes(5)); });
  // Until the gate is closed a second request of the same id is refused for that.
  GenerateInput twin = Prompt();
  twin.request_id = sink_.id();
  absl::Status refused = absl::AlreadyExistsError("");
  while (absl::IsAlreadyExists(refused)) {
    RecordingSink sink;
    EXPECT_EQ(pipeline_->Start(twin, clock_.Now() + std::chrono::seconds(9), &sink), nullptr);
    refused = sink.WaitFinished();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(sink_.finished());
  decode_call_->SendTokens({ByteToken('c')}, FinishReason::kLength);
  shutdown.join();
  EXPECT_TRUE(sink_.WaitFinished().ok());
  EXPECT_EQ(sink_.text(), "abc");
  ExpectIdle();
}

TEST_F(EndingTest, OverloadIsRefusedAndTheQueueMovesOn) {
  StartUpTo(Stage::kWaiting);
  RecordingSink third;
  EXPECT_EQ(pipeline_->Start(Prompt(), clock_.Now() + std::chrono::seconds(9), &third), nullptr);
  EXPECT_EQ(third.WaitFinished().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(third.WaitFinished().message(), HasSubstr("retry in"));
  EXPECT_EQ(third.id(), "");
  EXPECT_EQ(metrics_.requests.With({"RESOURCE_EXHAUSTED"}).value(), 1);

  prefill_[0]->WaitForCall(0)->Reply(FirstToken(kEos));
  EXPECT_TRUE(occupant_sink_.WaitFinished().ok());
  const auto next = prefill_[0]->WaitForCall(1);
  ASSERT_NE(next, nullptr);
  next->Reply(FirstToken(kEos));
  EXPECT_TRUE(sink_.WaitFinished().ok());
  ExpectIdle();
}

TEST_F(EndingTest, RefusedRequests) {
  GenerateInput bad_utf8 = Prompt("abc\xff");
  GenerateInput hot = Prompt();
  hot.sampling.temperature = -1;
  GenerateInput long_prompt;
  long_prompt.prompt_tokens.assign(32768, 1);
  GenerateInput long_answer = Prompt("Hello", 32767);
  const RefusedCase cases[] = {
      {"Empty", {}, absl::StatusCode::kInvalidArgument, "prompt is empty"},
      {"Utf8", bad_utf8, absl::StatusCode::kInvalidArgument, "3"},
      {"Sampling", hot, absl::StatusCode::kInvalidArgument, "temperature"},
      {"Context", long_prompt, absl::StatusCode::kInvalidArgument, "32768"},
      {"Answer", long_answer, absl::StatusCode::kInvalidArgument, "max_tokens 32767"},
  };
  for (const RefusedCase& c : cases) {
    SCOPED_TRACE(c.name);
    RecordingSink sink;
    pipeline_->Start(c.input, clock_.Now() + std::chrono::seconds(9), &sink);
    const absl::Status status = sink.WaitFinished();
    EXPECT_EQ(status.code(), c.code);
    EXPECT_THAT(status.message(), HasSubstr(c.says));
  }
  Flush();
  ExpectIdle();
  EXPECT_EQ(pipeline_->requests(), std::size(cases));
  EXPECT_EQ(prefill_[0]->num_calls(), 0u);
}

TEST_F(EndingTest, RequestIdMayNotRunTwice) {
  GenerateInput input = Prompt();
  input.request_id = "twin";
  const auto first = Start(input);
  EXPECT_NE(prefill_[0]->WaitForCall(0), nullptr);
  RecordingSink second;
  EXPECT_EQ(pipeline_->Start(input, clock_.Now() + std::chrono::seconds(9), &second), nullptr);
  EXPECT_EQ(second.WaitFinished().code(), absl::StatusCode::kAlreadyExists);
  first->CancelByClient();
  RecordingSink third;
  const auto again = pipeline_->Start(input, clock_.Now() + std::chrono::seconds(9), &third);
  EXPECT_NE(again, nullptr);
  again->CancelByClient();
}

class SmallContextTest : public PipelineTest {
 protected:
  SmallContextTest() : PipelineTest({.max_context = 100}) {}
};

TEST_F(SmallContextTest, WorkersContextCounts) {
  GenerateInput input;
  input.prompt_tokens.assign(90, 1);
  input.max_tokens = 11;
  Start(input);
  EXPECT_THAT(sink_.WaitFinished().message(), HasSubstr("model's context 100, allowed are 1..10"));

  // Without max_tokens the answer takes what is left, and says that the context ended it.
  input.max_tokens = 0;
  RecordingSink sink;
  pipeline_->Start(input, clock_.Now() + std::chrono::seconds(9), &sink);
  prefill_[0]->WaitForCall(0)->Reply(FirstToken(ByteToken('a')));
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  EXPECT_EQ(decode->call.max_tokens, 10u);
  decode->SendTokens(std::vector<int32_t>(9, ByteToken('b')), FinishReason::kLength);
  EXPECT_TRUE(sink.WaitFinished().ok());
  EXPECT_EQ(sink.last().finish, FinishReason::kContext);
}

// Cancels race every step, from another thread; the sink and ExpectIdle judge.
class RaceTest : public PipelineTest {
 protected:
  RaceTest() : PipelineTest({.admission = {.max_running = 2, .max_waiting = 100}}) {}
};

TEST_F(RaceTest, CancelAgainstEverything) {
  for (auto* worker : prefill_) {
    worker->AnswerWith([](FakePrefill& call) { call.Reply(FirstToken(ByteToken('a'))); });
  }
  attention_[0]->AnswerWith([](FakeDecode& call) { call.End(absl::UnavailableError("gone")); });
  attention_[1]->AnswerWith([](FakeDecode& call) {
    for (int i = 0; i < 3; ++i) call.SendTokens({ByteToken('b')});
    call.SendTokens({}, FinishReason::kLength);
    call.End(absl::OkStatus());
  });
  for (int round = 0; round < 300; ++round) {
    RecordingSink sinks[4];
    std::vector<std::shared_ptr<Request>> requests;
    for (RecordingSink& sink : sinks) {
      requests.push_back(pipeline_->Start(Prompt(), clock_.Now() + std::chrono::seconds(9), &sink));
      ASSERT_NE(requests.back(), nullptr);
    }
    std::thread canceller([&] {
      for (const auto& request : requests) request->CancelByClient();
    });
    pipeline_->Tick();
    canceller.join();
    for (RecordingSink& sink : sinks) {
      const absl::Status status = sink.WaitFinished();
      EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    }
    clock_.Advance(std::chrono::seconds(1));
    workers_->Poll();  // the failed worker is back
  }
  pipeline_->Shutdown(SteadyClock::Get()->Now());
  ExpectIdle();
}

}  // namespace
}  // namespace oscarkv::gateway
