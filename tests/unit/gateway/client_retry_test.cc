// Requests that come again with the tokens of an earlier attempt.
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class ClientRetryTest : public PipelineTest {
 protected:
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
  GenerateInput Retry(const std::string& answer, uint32_t max_tokens = 50) {
    GenerateInput input = Prompt("Once upon a time", max_tokens);
    input.resume_tokens = Bytes(answer);
    input.attempt = 2;
    return input;
  }
};

TEST_F(ClientRetryTest, GoesOnBehindTheTokens) {
  Start(Retry("abc"));
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  std::vector<int32_t> expected = Encode("Once upon a time");
  const size_t prompt = expected.size();
  for (int32_t token : Bytes("abc")) expected.push_back(token);
  EXPECT_EQ(decode->call.tokens, expected);
  EXPECT_EQ(decode->call.prompt_tokens, prompt);
  EXPECT_EQ(decode->call.max_tokens, 50u);
  clock_.Advance(seconds(1));
  decode->SendTokens(Bytes("d"));
  clock_.Advance(seconds(3));
  decode->SendTokens(Bytes("e"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "de");
  EXPECT_EQ(sink_.tokens(), Bytes("de"));
  const Usage usage = *sink_.last().usage;
  EXPECT_EQ(usage.generated_tokens, 5u);
  EXPECT_EQ(usage.prompt_tokens, prompt);
  EXPECT_EQ(usage.ttft, seconds(1));
  EXPECT_EQ(usage.tpot, seconds(3));
  EXPECT_EQ(prefill_[0]->num_calls() + prefill_[1]->num_calls(), 0u);
  EXPECT_EQ(metrics_.client_retries.value(), 1);
  EXPECT_EQ(metrics_.generated_tokens.value(), 2);
}

TEST_F(ClientRetryTest, WorkerLostBeforeANewTokenIsAResume) {
  Start(Retry("abc"));
  attention_[0]->WaitForCall(0)->End(absl::UnavailableError("gone"));
  const auto second = attention_[1]->WaitForCall(0);
  ASSERT_NE(second, nullptr);
  second->SendTokens(Bytes("d"), FinishReason::kLength);
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "d");
  EXPECT_EQ(sink_.last().usage->resumes, 1u);
}

// Neither a worker nor a token is needed when only the end was lost.
TEST_F(ClientRetryTest, CompleteAnswersOnlyEnd) {
  struct Case {
    const char* name;
    std::string answer;
    uint32_t max_tokens;
    std::vector<std::string> stop;
    int32_t stop_token;
    FinishReason finish;
    const char* text;
  };
  const Case kCases[] = {
      {"length", "abc", 3, {}, -1, FinishReason::kLength, ""},
      {"held text", "abx", 3, {"xyz"}, -1, FinishReason::kLength, "x"},
      {"stop string", "abxyz", 50, {"xyz"}, -1, FinishReason::kStopString, ""},
      {"stop token", "abc", 50, {}, ByteToken('c'), FinishReason::kStopToken, ""},
  };
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    GenerateInput input = Retry(c.answer, c.max_tokens);
    input.stop = c.stop;
    if (c.stop_token >= 0) input.stop_tokens = {c.stop_token};
    RecordingSink sink;
    pipeline_->Start(input, clock_.Now() + seconds(60), &sink);
    EXPECT_TRUE(sink.WaitFinished().ok());
    EXPECT_EQ(sink.last().finish, c.finish);
    EXPECT_EQ(sink.text(), c.text);
    EXPECT_TRUE(sink.tokens().empty());
    EXPECT_EQ(sink.last().usage->generated_tokens, c.answer.size());
  }
  ExpectIdle();
  EXPECT_EQ(attention_[0]->num_calls(), 0u);
}

TEST_F(ClientRetryTest, StopStringAcrossAttempts) {
  GenerateInput input = Retry("abxy");
  input.stop = {"xyz"};
  Start(input);
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  decode->SendTokens(Bytes("z"));
  EXPECT_TRUE(Finished().ok());
  EXPECT_EQ(sink_.text(), "");
  EXPECT_EQ(sink_.last().finish, FinishReason::kStopString);
}

TEST_F(ClientRetryTest, TokensThatCannotBeAreRefused) {
  struct Case {
    const char* says;
    std::vector<int32_t> tokens;
    uint32_t max_tokens;
  };
  const Case kCases[] = {
      {"resume_tokens[1] is 8192", {5, 8192}, 50},
      {"resume_tokens[0] is -1", {-1}, 50},
      {"resume_tokens has 3 ids: allowed are up to max_tokens, 2", {5, 6, 7}, 2},
      {"resume_tokens[1] is 8189: it ends the answer", {5, kEos, 7}, 50},
      {"number of resume_tokens 32768", std::vector<int32_t>(32768, 5), 50},
  };
  for (const Case& c : kCases) {
    GenerateInput input = Prompt("Hi", c.max_tokens);
    input.resume_tokens = c.tokens;
    RecordingSink sink;
    pipeline_->Start(input, clock_.Now() + seconds(60), &sink);
    const absl::Status status = sink.WaitFinished();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.says));
  }
  ExpectIdle();
}

TEST_F(ClientRetryTest, LaterAttemptTakesTheEarlierOnesPlace) {
  GenerateInput input = Prompt();
  input.request_id = "mine";
  const auto first = StartDecoding(input, ByteToken('a'));
  ASSERT_NE(first, nullptr);
  RecordingSink same;  // no later attempt
  pipeline_->Start(input, clock_.Now() + seconds(60), &same);
  EXPECT_EQ(same.WaitFinished().code(), absl::StatusCode::kAlreadyExists);
  GenerateInput strange = Retry("a");
  strange.request_id = "mine";
  strange.tenant = "another";
  RecordingSink stranger;
  const auto beside = pipeline_->Start(strange, clock_.Now() + seconds(60), &stranger);
  ASSERT_NE(attention_[0]->WaitForCall(1), nullptr);
  // Ids of two tenants do not meet: neither is the first one ended, nor does it stand in the way.
  EXPECT_EQ(stranger.id(), "mine");
  EXPECT_FALSE(first->cancelled());
  beside->Cancel(absl::CancelledError("enough"));

  GenerateInput again = Retry("a");
  again.request_id = "mine";
  RecordingSink second;
  pipeline_->Start(again, clock_.Now() + seconds(60), &second);
  EXPECT_EQ(sink_.WaitFinished().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(first->WaitCancelled());
  const auto decode = attention_[0]->WaitForCall(2);
  ASSERT_NE(decode, nullptr);
  decode->SendTokens(Bytes("b"), FinishReason::kLength);
  EXPECT_TRUE(second.WaitFinished().ok());
  EXPECT_EQ(second.text(), "b");
  ExpectIdle();
}

}  // namespace
}  // namespace oscarkv::gateway
