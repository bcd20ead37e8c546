// Requests under way while no worker of a role is usable: they wait for one to come back.
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// One worker of each role, 20 s of patience.
class ResumeWaitTest : public PipelineTest {
 protected:
  ResumeWaitTest()
      : PipelineTest({.prefill = 1, .attention = 1, .resume_wait = std::chrono::seconds(20)}) {}

  absl::Status Finished() {
    const absl::Status status = sink_.WaitFinished();
    ExpectIdle();
    return status;
  }
  std::vector<int32_t> Bytes(const std::string& text) const {
    std::vector<int32_t> tokens;
    for (char c : text) tokens.push_back(ByteToken(c));
    return tokens;
  }
  void Pass(Duration time) {
    clock_.Advance(time);
    workers_->Poll();
    pipeline_->Tick();
  }
  // From the next poll on.
  void Down(WorkerRole role) { SetInfo(role, absl::UnavailableError("connection refused")); }
  void Up(WorkerRole role) { SetInfo(role, FakeInfo(role)); }
  void SetInfo(WorkerRole role, const absl::StatusOr<WorkerInfo>& info) {
    if (role == WorkerRole::kPrefill) {
      prefill_[0]->SetInfo(info);
    } else {
      attention_[0]->SetInfo(info);
    }
  }
  double Waits(const char* outcome) { return metrics_.worker_waits.With({outcome}).value(); }
};

TEST_F(ResumeWaitTest, StreamGoesOnWhenItsWorkerIsBack) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("bc"));
  Down(WorkerRole::kAttention);
  first->End(absl::UnavailableError("Socket closed"));
  for (int i = 0; i < 19; ++i) Pass(seconds(1));
  EXPECT_FALSE(sink_.finished());
  EXPECT_EQ(attention_[0]->num_calls(), 1u);
  EXPECT_EQ(pipeline_->running(), 1);  // keeps its place
  EXPECT_EQ(pipeline_->InFlight()[0].phases.back().name,
            std::string("waiting for a worker to come back"));
  Up(WorkerRole::kAttention);
  workers_->Poll();  // not due before the next second: nobody is asked
  pipeline_->Tick();
  EXPECT_EQ(attention_[0]->num_calls(), 1u);
  clock_.Advance(std::chrono::milliseconds(999));
  pipeline_->Tick();
  EXPECT_FALSE(sink_.finished());
  clock_.Advance(std::chrono::milliseconds(1));
  workers_->Poll();
  pipeline_->Tick();  // in the last moment
  const auto second = attention_[0]->WaitForCall(1);
  ASSERT_NE(second, nullptr);
  std::vector<int32_t> expected = Encode("Once upon a time");
  for (int32_t token : Bytes("abc")) expected.push_back(token);
  EXPECT_EQ(second->call.tokens, expected);
  second->SendTokens(Bytes("d"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "abcd");
  EXPECT_EQ(sink_.last().usage->resumes, 1u);
  EXPECT_EQ(metrics_.resumes.With({"failed"}).value(), 1);
  EXPECT_EQ(metrics_.resume_seconds.sum(), 20);
  EXPECT_EQ(Waits("came_back"), 1);
  EXPECT_EQ(Waits("gave_up"), 0);
}

TEST_F(ResumeWaitTest, EndsWithTheFailureWhenNoneComes) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  Down(WorkerRole::kAttention);
  first->End(absl::UnavailableError("Socket closed"));
  for (int i = 0; i < 19; ++i) Pass(seconds(1));
  EXPECT_FALSE(sink_.finished());
  Pass(seconds(1));
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("attention worker a0 failed after 2 tokens: Socket closed"),
                    HasSubstr("no attention worker is available")));
  EXPECT_EQ(Waits("gave_up"), 1);
  EXPECT_EQ(metrics_.resumes.With({"failed"}).value(), 0);
  Up(WorkerRole::kAttention);
  Pass(seconds(1));
  EXPECT_EQ(attention_[0]->num_calls(), 1u);
}

TEST_F(ResumeWaitTest, DeadlineIsNotExtended) {
  Start(Prompt(), seconds(5));
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  Down(WorkerRole::kPrefill);
  prefill->Reply(absl::UnavailableError("gone"));
  Pass(seconds(4));
  EXPECT_FALSE(sink_.finished());
  Pass(seconds(1));
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("waiting for a worker to come back"));
}

TEST_F(ResumeWaitTest, PrefillIsRepeatedWhenItsWorkerIsBack) {
  Start(Prompt());
  const auto first = prefill_[0]->WaitForCall(0);
  ASSERT_NE(first, nullptr);
  Down(WorkerRole::kPrefill);
  first->Reply(absl::UnavailableError("gone"));
  Pass(seconds(3));
  Up(WorkerRole::kPrefill);
  Pass(seconds(1));
  const auto second = prefill_[0]->WaitForCall(1);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->call.tokens, first->call.tokens);
  // A prompt that takes its worker along twice is not tried a third time.
  Down(WorkerRole::kPrefill);
  second->Reply(absl::UnavailableError("gone again"));
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gone again"));
  EXPECT_EQ(metrics_.retries.With({"prefill"}).value(), 1);
}

TEST_F(ResumeWaitTest, AttentionWorkerThatLeftDuringThePrefillIsAwaited) {
  Start(Prompt());
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  Down(WorkerRole::kAttention);
  Pass(seconds(1));
  prefill->Reply(FirstToken(ByteToken('a')));
  sink_.WaitOutputs(1);
  Up(WorkerRole::kAttention);
  Pass(seconds(1));
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  decode->SendTokens(Bytes("b"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.last().usage->resumes, 0u);  // the first worker that it had
}

TEST_F(ResumeWaitTest, StoppedWorkerIsTakenAgainWhenItAnswers) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  SetInfo(WorkerRole::kAttention, absl::DeadlineExceededError("poll"));
  for (int i = 0; i < 12; ++i) Pass(seconds(1));
  EXPECT_TRUE(first->cancelled());
  EXPECT_FALSE(sink_.finished());
  Up(WorkerRole::kAttention);
  Pass(seconds(1));
  const auto second = attention_[0]->WaitForCall(1);
  ASSERT_NE(second, nullptr);
  second->SendTokens(Bytes("c"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "abc");
  EXPECT_EQ(metrics_.resumes.With({"silent"}).value(), 1);
}

TEST_F(ResumeWaitTest, UsableWorkerThatFailedTheRequestIsNotAwaited) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::InternalError("broken"));  // it answers polls all the same
  EXPECT_EQ(Finished().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Waits("gave_up"), 0);
}

TEST_F(ResumeWaitTest, ResumesStayBounded) {
  auto decode = StartDecoding(Prompt(), ByteToken('a'));
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_NE(decode, nullptr);
    decode->SendTokens(Bytes("b"));
    Down(WorkerRole::kAttention);
    decode->End(absl::UnavailableError("crashed"));
    Pass(seconds(1));
    Up(WorkerRole::kAttention);
    Pass(seconds(1));
    if (i < 3) decode = attention_[0]->WaitForCall(i + 1);
  }
  const absl::Status status = Finished();
  EXPECT_THAT(std::string(status.message()), HasSubstr("--max-resumes"));
  EXPECT_EQ(metrics_.resumes.With({"failed"}).value(), 3);
}

TEST_F(ResumeWaitTest, NewRequestsAreRefusedAtOnce) {
  Down(WorkerRole::kAttention);
  Pass(seconds(1));
  Start(Prompt());
  EXPECT_EQ(Finished().code(), absl::StatusCode::kUnavailable);
}

// A gateway that was just started again has not heard of its workers when its clients come back.
TEST_F(ResumeWaitTest, ClientsRetryWaitsForWorkers) {
  for (const bool with_tokens : {false, true}) {
    SCOPED_TRACE(with_tokens);
    Down(WorkerRole::kPrefill);
    Down(WorkerRole::kAttention);
    Pass(seconds(1));
    GenerateInput input = Prompt();
    input.attempt = 2;
    if (with_tokens) input.resume_tokens = Bytes("ab");
    RecordingSink sink;
    const auto request = pipeline_->Start(input, clock_.Now() + seconds(60), &sink);
    ASSERT_NE(request, nullptr);
    const Time patience = SteadyClock::Get()->Now() + kTestPatience;
    while (request->Record().phases.back().name !=
               std::string("waiting for a worker to come back") &&
           SteadyClock::Get()->Now() < patience) {
      std::this_thread::yield();
    }
    Up(WorkerRole::kAttention);
    Pass(seconds(1));
    EXPECT_FALSE(sink.finished());  // no prefill worker yet
    Up(WorkerRole::kPrefill);
    Pass(seconds(1));
    if (!with_tokens) prefill_[0]->WaitForCall(0)->Reply(FirstToken(ByteToken('a')));
    const auto decode = attention_[0]->WaitForCall(with_tokens);
    ASSERT_NE(decode, nullptr);
    decode->SendTokens(Bytes("c"), FinishReason::kLength);
    EXPECT_TRUE(sink.WaitFinished().ok());
    EXPECT_EQ(sink.text(), with_tokens ? "c" : "ac");
    ExpectIdle();
  }
  EXPECT_EQ(Waits("came_back"), 2);
}

TEST_F(ResumeWaitTest, CancelAndShutdownEndTheWait) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  Down(WorkerRole::kAttention);
  first->End(absl::UnavailableError("gone"));
  pipeline_->Shutdown(Time{});
  EXPECT_EQ(Finished().code(), absl::StatusCode::kUnavailable);
  Up(WorkerRole::kAttention);
  Pass(seconds(1));
  EXPECT_EQ(attention_[0]->num_calls(), 1u);
}

}  // namespace
}  // namespace oscarkv::gateway
