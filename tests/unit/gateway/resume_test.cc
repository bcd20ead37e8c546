// Answers whose attention worker is lost after tokens: continued on another one without the client
// noticing more than a pause.
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ResumeTest : public PipelineTest {
 protected:
  explicit ResumeTest(const PipelineSetup& setup = {}) : PipelineTest(setup) {}
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
  double Resumes(const char* reason) { return metrics_.resumes.With({reason}).value(); }
};

TEST_F(ResumeTest, GoesOnFromAllTokensSoFar) {
  GenerateInput input = Prompt("Once upon a time", 50);
  input.sampling = {.temperature = 0.7f, .repetition_penalty = 1.2f, .seed = 9, .logprobs = 2};
  input.stop_tokens = {77};
  const auto first = StartDecoding(input, ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("bc"));
  first->SendTokens(Bytes("d"));
  first->End(absl::UnavailableError("Socket closed"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  std::vector<int32_t> expected = Encode("Once upon a time");
  const size_t prompt = expected.size();
  for (int32_t token : Bytes("abcd")) expected.push_back(token);
  EXPECT_EQ(second->call.tokens, expected);
  EXPECT_EQ(second->call.prompt_tokens, prompt);
  EXPECT_EQ(second->call.max_tokens, 50u);
  EXPECT_EQ(second->call.sampling.seed, 9u);
  EXPECT_EQ(second->call.sampling.repetition_penalty, 1.2f);
  EXPECT_EQ(second->call.stop_tokens, first->call.stop_tokens);
  EXPECT_EQ(second->call.request_id, first->call.request_id);
  EXPECT_EQ(second->deadline(), first->deadline());  // the budget is not renewed
  clock_.Advance(seconds(2));
  second->SendTokens(Bytes("ef"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "abcdef");
  EXPECT_EQ(sink_.tokens(), Bytes("abcdef"));
  const Usage usage = *sink_.last().usage;
  EXPECT_EQ(usage.generated_tokens, 6u);
  EXPECT_EQ(usage.resumes, 1u);
  EXPECT_EQ(usage.attention_worker, "a1");
  EXPECT_EQ(usage.tpot, Duration(seconds(2)) / 5);
  EXPECT_EQ(Resumes("failed"), 1);
  EXPECT_EQ(metrics_.retries.With({"decode"}).value(), 0);
  EXPECT_EQ(metrics_.generated_tokens.value(), 6);
  EXPECT_EQ(metrics_.resume_seconds.sum(), 2);
}

TEST_F(ResumeTest, StopStringMayBeginOnTheLostWorker) {
  GenerateInput input = Prompt();
  input.stop = {"xyz"};
  const auto first = StartDecoding(input, ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("xy"));  // held back
  first->End(absl::InternalError("stream reset"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->SendTokens(Bytes("zq"));
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "a");
  EXPECT_EQ(sink_.tokens(), Bytes("axyz"));
  EXPECT_EQ(sink_.last().finish, FinishReason::kStopString);
  EXPECT_TRUE(second->cancelled());
}

TEST_F(ResumeTest, AnswerThatWasCompleteButForItsEnd) {
  const auto first = StartDecoding(Prompt("Hi", 2), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::UnavailableError("gone"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->SendTokens({}, FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "ab");
  EXPECT_EQ(sink_.last().usage->generated_tokens, 2u);
}

TEST_F(ResumeTest, BoundOfTokensHoldsAcrossWorkers) {
  const auto first = StartDecoding(Prompt("Hi", 3), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::UnavailableError("gone"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->SendTokens(Bytes("cd"));
  EXPECT_EQ(Finished().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(sink_.text(), "ab");
}

TEST_F(ResumeTest, LateTokensOfTheLostWorkerAreDropped) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  clock_.Advance(seconds(10));
  pipeline_->Tick();
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(first->cancelled());
  first->SendTokens(Bytes("x"));
  second->SendTokens(Bytes("c"));
  first->SendTokens(Bytes("y"), FinishReason::kLength);
  second->SendTokens(Bytes("d"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "abcd");
  EXPECT_EQ(Resumes("silent"), 1);
}

TEST_F(ResumeTest, SignsOfLifeKeepTheWorker) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(seconds(9));
    pipeline_->Tick();
    first->Send(DecodeEvent());
  }
  EXPECT_FALSE(first->cancelled());
  clock_.Advance(seconds(9));
  pipeline_->Tick();
  EXPECT_EQ(attention_[1]->num_calls(), 0u);
  first->SendTokens(Bytes("b"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "ab");
}

TEST_F(ResumeTest, SilenceBeforeTheFirstTokenIsARetry) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  clock_.Advance(seconds(10));
  pipeline_->Tick();
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(first->cancelled());
  second->SendTokens(Bytes("b"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.last().usage->resumes, 0u);
  EXPECT_EQ(metrics_.retries.With({"decode"}).value(), 1);
}

TEST_F(ResumeTest, PrefillIsNotHeldForSilent) {
  Start(Prompt());
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  clock_.Advance(seconds(30));
  pipeline_->Tick();
  EXPECT_FALSE(prefill->cancelled());
  prefill->Reply(FirstToken(kEos));
  EXPECT_TRUE(Finished().ok());
}

TEST_F(ResumeTest, HandedOverStreamsCountTheirTransfers) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  DecodeEvent event;
  event.summary = DecodeSummary{{100, 1, {"posix"}}, {1000, 2, {"posix"}}, 7, 0, 5, 5};
  first->Send(event);
  first->End(absl::UnavailableError("shutting down; handed over"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->SendTokens(Bytes("c"));
  event.finish = FinishReason::kLength;
  event.summary = DecodeSummary{{20, 1, {"tcp"}}, {3, 1, {"tcp"}}, 2, 0, 600, 1200};
  second->Send(event);
  EXPECT_TRUE(Finished().ok());
  const Usage usage = *sink_.last().usage;
  EXPECT_EQ(usage.bytes_got, 120u);
  EXPECT_EQ(usage.bytes_put, 1003u);
  EXPECT_EQ(usage.recomputed_tokens, 9u);
  EXPECT_EQ(usage.kv_bytes_stored, 600u);  // of the whole sequence, as the last worker held it
  EXPECT_THAT(usage.lanes, ::testing::ElementsAre("posix", "tcp"));
  EXPECT_EQ(Resumes("handed_over"), 1);
}

// Two workers in turn, each good for one token: bounded all the same.
TEST_F(ResumeTest, NumberOfResumesIsBounded) {
  auto decode = StartDecoding(Prompt(), ByteToken('a'));
  for (int i = 0; i < 4; ++i) {
    ASSERT_NE(decode, nullptr);
    decode->SendTokens(Bytes("b"));
    decode->End(absl::InternalError("broken"));
    if (i < 3) decode = attention_[(i + 1) % 2]->WaitForCall((i + 1) / 2);
  }
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("attention worker a1 failed after 5 tokens: broken"),
                    HasSubstr("--max-resumes")));
  EXPECT_EQ(sink_.text(), "abbbb");
  EXPECT_EQ(Resumes("failed"), 3);
}

TEST_F(ResumeTest, WorkersThatBringNothingAreTriedOnceEach) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::ResourceExhaustedError("outgrown"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->End(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(Finished().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(attention_[0]->num_calls(), 1u);
  EXPECT_EQ(attention_[1]->num_calls(), 1u);
}

TEST_F(ResumeTest, CancelReachesTheSecondWorker) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::UnavailableError("gone"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  pipeline_->Shutdown(Time{});
  EXPECT_TRUE(second->WaitCancelled());
  EXPECT_EQ(Finished().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ResumeTest, DrainingWorkerGetsNothingNew) {
  WorkerInfo info = FakeInfo(WorkerRole::kAttention);
  info.draining = true;
  attention_[0]->SetInfo(info);
  clock_.Advance(seconds(1));
  workers_->Poll();
  Start(Prompt());
  prefill_[0]->WaitForCall(0)->Reply(FirstToken(ByteToken('a')));
  const auto decode = attention_[1]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  decode->SendTokens(Bytes("b"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(attention_[0]->num_calls(), 0u);
}

class OneWorkerTest : public ResumeTest {
 protected:
  OneWorkerTest() : ResumeTest({.attention = 1}) {}
};

TEST_F(OneWorkerTest, SaysWhyNobodyGoesOn) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  first->End(absl::UnavailableError("Socket closed"));
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("attention worker a0 failed after 2 tokens: Socket closed"),
                    HasSubstr("no attention worker is available")));
  EXPECT_EQ(sink_.text(), "ab");
  EXPECT_EQ(Resumes("failed"), 0);
}

TEST_F(OneWorkerTest, SilentWorkersCallIsCancelledAllTheSame) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->SendTokens(Bytes("b"));
  clock_.Advance(seconds(10));
  pipeline_->Tick();
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("sent nothing for 10 s"));
  EXPECT_TRUE(first->cancelled());
}

}  // namespace
}  // namespace oscarkv::gateway
