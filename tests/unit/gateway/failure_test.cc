// Workers that fail: which failures are tried again elsewhere, what the client is told.
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status Error(absl::StatusCode code, const char* message = "broken") {
  return absl::Status(code, message);
}

class FailureTest : public PipelineTest {
 protected:
  absl::Status Finished() {
    const absl::Status status = sink_.WaitFinished();
    ExpectIdle();
    return status;
  }
};

struct RetryCase {
  const char* name;
  absl::StatusCode code;
  bool retried;
  absl::StatusCode told;  // when the second one fails alike, or it is not tried
};

const RetryCase kRetries[] = {
    {"Unavailable", absl::StatusCode::kUnavailable, true, absl::StatusCode::kUnavailable},
    {"Internal", absl::StatusCode::kInternal, true, absl::StatusCode::kInternal},
    {"Aborted", absl::StatusCode::kAborted, true, absl::StatusCode::kAborted},
    {"Full", absl::StatusCode::kResourceExhausted, true, absl::StatusCode::kResourceExhausted},
    {"StreamRemoved", absl::StatusCode::kUnknown, true, absl::StatusCode::kUnknown},
    {"CancelledByTheWorker", absl::StatusCode::kCancelled, true, absl::StatusCode::kUnavailable},
    {"InvalidArgument", absl::StatusCode::kInvalidArgument, false,
     absl::StatusCode::kInvalidArgument},
    {"FailedPrecondition", absl::StatusCode::kFailedPrecondition, false,
     absl::StatusCode::kFailedPrecondition},
    {"DeadlineExceeded", absl::StatusCode::kDeadlineExceeded, false,
     absl::StatusCode::kDeadlineExceeded},
    {"DataLoss", absl::StatusCode::kDataLoss, false, absl::StatusCode::kDataLoss},
};

class RetryTest : public FailureTest, public ::testing::WithParamInterface<RetryCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, RetryTest, ::testing::ValuesIn(kRetries),
                         [](const auto& info) { return info.param.name; });

TEST_P(RetryTest, PrefillGoesToTheOtherWorkerOnce) {
  const RetryCase& c = GetParam();
  Start(Prompt());
  prefill_[0]->WaitForCall(0)->Reply(Error(c.code));
  if (c.retried) {
    const auto second = prefill_[1]->WaitForCall(0);
    ASSERT_NE(second, nullptr);
    EXPECT_EQ(second->call.tokens, prefill_[0]->WaitForCall(0)->call.tokens);
    second->Reply(Error(c.code));
  }
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), c.told);
  EXPECT_THAT(status.message(),
              HasSubstr(c.retried ? "prefill worker p1 (the second one tried): broken"
                                  : "prefill worker p0: broken"));
  EXPECT_EQ(prefill_[0]->num_calls() + prefill_[1]->num_calls(), c.retried ? 2u : 1u);
  EXPECT_EQ(metrics_.retries.With({"prefill"}).value(), c.retried ? 1 : 0);
}

TEST_P(RetryTest, DecodeGoesToTheOtherWorkerOnceBeforeItsFirstToken) {
  const RetryCase& c = GetParam();
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->End(Error(c.code));
  if (c.retried) {
    const auto second = attention_[1]->WaitForCall(0);
    ASSERT_NE(second, nullptr);
    EXPECT_EQ(second->call.tokens, first->call.tokens);
    second->End(Error(c.code));
  }
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), c.told);
  EXPECT_THAT(status.message(),
              HasSubstr(c.retried ? "attention worker a1" : "attention worker a0"));
  EXPECT_EQ(metrics_.retries.With({"decode"}).value(), c.retried ? 1 : 0);
  EXPECT_EQ(metrics_.requests.With({absl::StatusCodeToString(c.told)}).value(), 1);
}

// What another worker can do with it is told in resume_test.cc.
TEST_P(RetryTest, DecodeGoesOnElsewhereAfterAToken) {
  const RetryCase& c = GetParam();
  const auto decode = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(decode, nullptr);
  decode->SendTokens({ByteToken('b')});
  decode->End(Error(c.code));
  if (c.retried) {
    const auto second = attention_[1]->WaitForCall(0);
    ASSERT_NE(second, nullptr);
    second->SendTokens({ByteToken('c')}, FinishReason::kLength);
    EXPECT_TRUE(Finished().ok());
    EXPECT_EQ(sink_.text(), "abc");
    EXPECT_EQ(metrics_.resumes.With({"failed"}).value(), 1);
    return;
  }
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), c.told);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("attention worker a0"), HasSubstr("broken")));
  EXPECT_EQ(sink_.text(), "ab");
  EXPECT_EQ(attention_[1]->num_calls(), 0u);
}

TEST_F(FailureTest, RetriedPrefillAnswers) {
  Start(Prompt());
  prefill_[0]->WaitForCall(0)->Reply(absl::UnavailableError("gone"));
  prefill_[1]->WaitForCall(0)->Reply(FirstToken(ByteToken('a')));
  attention_[0]->WaitForCall(0)->SendTokens({ByteToken('b')}, FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "ab");
  EXPECT_EQ(sink_.last().usage->prefill_worker, "p1");
}

TEST_F(FailureTest, RetriedDecodeAnswersWithoutRepeatingAToken) {
  const auto first = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(first, nullptr);
  first->End(absl::UnavailableError("gone"));
  attention_[1]->WaitForCall(0)->SendTokens({ByteToken('b')}, FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "ab");
  EXPECT_EQ(sink_.tokens(), (std::vector<int32_t>{ByteToken('a'), ByteToken('b')}));
  EXPECT_EQ(sink_.last().usage->attention_worker, "a1");
}

TEST_F(FailureTest, DeadWorkerIsNotUsedForTheNextRequest) {
  Start(Prompt());
  prefill_[0]->WaitForCall(0)->Reply(absl::UnavailableError("gone"));
  prefill_[1]->WaitForCall(0)->Reply(FirstToken(kEos));
  EXPECT_TRUE(Finished().ok());
  RecordingSink next;
  pipeline_->Start(Prompt(), clock_.Now() + std::chrono::seconds(9), &next);
  prefill_[1]->WaitForCall(1)->Reply(FirstToken(kEos));
  EXPECT_TRUE(next.WaitFinished().ok());
  EXPECT_EQ(prefill_[0]->num_calls(), 1u);
}

TEST_F(FailureTest, AttentionWorkerThatLeftDuringThePrefillIsReplaced) {
  Start(Prompt());
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  workers_->ReportFailure(WorkerRole::kAttention, 0, absl::UnavailableError("gone"));
  prefill->Reply(FirstToken(ByteToken('a')));
  const auto decode = attention_[1]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  decode->SendTokens({ByteToken('b')}, FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(attention_[0]->num_calls(), 0u);
}

TEST_F(FailureTest, WorkersOfAnotherModelDoNotFinishARequest) {
  Start(Prompt());
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  WorkerInfo info = FakeInfo(WorkerRole::kAttention);
  info.name_space = std::string(32, 'n');
  for (auto* worker : attention_) worker->SetInfo(info);
  info.role = "prefill";
  for (auto* worker : prefill_) worker->SetInfo(info);
  clock_.Advance(std::chrono::seconds(1));
  workers_->Poll();
  EXPECT_TRUE(workers_->routable());
  prefill->Reply(FirstToken(ByteToken('a')));
  EXPECT_EQ(Finished().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(attention_[0]->num_calls() + attention_[1]->num_calls(), 0u);
}

TEST_F(FailureTest, NoWorkerIsUnavailableAndSaysWhy) {
  for (auto* worker : attention_) worker->SetInfo(absl::UnavailableError("connection refused"));
  clock_.Advance(std::chrono::seconds(1));
  workers_->Poll();
  Start(Prompt());
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("no attention worker is available"),
                                      HasSubstr("a1"), HasSubstr("connection refused")));
  EXPECT_EQ(prefill_[0]->num_calls(), 0u);  // no prefill that nobody could decode
}

TEST_F(FailureTest, StreamWithoutAFinishReasonIsAnError) {
  const auto decode = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(decode, nullptr);
  decode->End(absl::OkStatus());
  attention_[1]->WaitForCall(0)->End(absl::OkStatus());
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("without a finish reason"));
}

TEST_F(FailureTest, WorkerThatSendsTooManyTokensIsStopped) {
  const auto decode = StartDecoding(Prompt("Hi", 2), ByteToken('a'));
  ASSERT_NE(decode, nullptr);
  decode->SendTokens({ByteToken('b'), ByteToken('c')});
  EXPECT_EQ(Finished().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(decode->cancelled());
  EXPECT_EQ(sink_.text(), "a");
}

TEST_F(FailureTest, LateCallbacksAreIgnored) {
  const auto decode = StartDecoding(Prompt(), ByteToken('a'));
  ASSERT_NE(decode, nullptr);
  decode->SendTokens({ByteToken('b')}, FinishReason::kLength);
  decode->SendTokens({ByteToken('c')});
  decode->End(absl::UnavailableError("gone"));
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "ab");
}

TEST_F(FailureTest, AnswersInsideTheCallsThatAskForThem) {
  // As a stub may do: every callback before Prefill and Decode have returned.
  prefill_[0]->AnswerWith([](FakePrefill& call) { call.Reply(FirstToken(ByteToken('a'))); });
  attention_[0]->AnswerWith([](FakeDecode& call) { call.End(absl::UnavailableError("gone")); });
  attention_[1]->AnswerWith([](FakeDecode& call) {
    call.SendTokens({ByteToken('b')});
    call.SendTokens({ByteToken('c')}, FinishReason::kLength);
    call.End(absl::OkStatus());
  });
  Start(Prompt());
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "abc");
  EXPECT_FALSE(attention_[1]->WaitForCall(0)->cancelled());
}

TEST_F(FailureTest, OnlyWorkersFailureIsToldWithWhyThereIsNoOther) {
  workers_->ReportFailure(WorkerRole::kPrefill, 1, absl::UnavailableError("was down before"));
  Start(Prompt());
  prefill_[0]->WaitForCall(0)->Reply(absl::InternalError("broken"));
  const absl::Status status = Finished();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("prefill worker p0: broken"), HasSubstr("was down before")));
}

}  // namespace
}  // namespace oscarkv::gateway
