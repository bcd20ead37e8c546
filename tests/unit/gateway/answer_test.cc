// From prompt to answer: what a client gets when nothing fails.
#include <algorithm>

#include "gateway/prefix_match.h"
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class AnswerTest : public PipelineTest {
 protected:
  // Decodes `text`, token by token, as the answer to a request; returns what the client read.
  std::string Answer(GenerateInput input, const std::vector<int32_t>& tokens,
                     FinishReason finish = FinishReason::kLength) {
    const auto decode = StartDecoding(std::move(input), tokens[0]);
    if (decode == nullptr) return "no decode";
    for (size_t i = 1; i < tokens.size() && !sink_.finished(); ++i) decode->SendTokens({tokens[i]});
    if (!sink_.finished()) decode->SendTokens({}, finish);
    EXPECT_TRUE(sink_.WaitFinished().ok()) << sink_.WaitFinished();
    ExpectIdle();
    return sink_.text();
  }
};

TEST_F(AnswerTest, StreamsTokensAsTheyCome) {
  const std::vector<int32_t> answer = Encode(" there was a king");
  ASSERT_GE(answer.size(), 3u);
  const auto request = Start(Prompt("Once upon a time", 20));
  ASSERT_NE(request, nullptr);
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  EXPECT_EQ(prefill->call.tokens, Encode("Once upon a time"));
  EXPECT_THAT(prefill->call.request_id, StartsWith("test-"));
  EXPECT_EQ(prefill->deadline(), clock_.Now() + std::chrono::seconds(60));
  EXPECT_EQ(sink_.num_outputs(), 0u);

  prefill->Reply(FirstToken(answer[0]));
  // The first token is with the client before the attention worker says anything.
  EXPECT_THAT(sink_.tokens(), ElementsAre(answer[0]));
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  std::vector<int32_t> expected = Encode("Once upon a time");
  EXPECT_EQ(decode->call.prompt_tokens, expected.size());
  expected.push_back(answer[0]);
  EXPECT_EQ(decode->call.tokens, expected);
  EXPECT_EQ(decode->call.max_tokens, 20u);
  EXPECT_THAT(decode->call.stop_tokens, ElementsAre(kEos));
  EXPECT_EQ(decode->call.request_id, sink_.id());

  for (size_t i = 1; i < answer.size(); ++i) {
    decode->SendTokens({answer[i]});
    EXPECT_EQ(sink_.tokens().size(), i + 1);
  }
  EXPECT_EQ(sink_.text(), " there was a king");
  decode->SendTokens({}, FinishReason::kLength);
  EXPECT_TRUE(sink_.finished());
  EXPECT_FALSE(decode->cancelled());
  decode->End(absl::OkStatus());
  EXPECT_TRUE(sink_.WaitFinished().ok());
  EXPECT_EQ(sink_.last().finish, FinishReason::kLength);
  EXPECT_EQ(metrics_.requests.With({"OK"}).value(), 1);
  ExpectIdle();
}

TEST_F(AnswerTest, UsageAddsUp) {
  Start(Prompt("Once upon a time"));
  const auto prefill = prefill_[0]->WaitForCall(0);
  ASSERT_NE(prefill, nullptr);
  clock_.Advance(std::chrono::milliseconds(300));
  PrefillResult first = FirstToken(Encode(" a")[0], 3);
  first.put = {1000, 2, {"posix"}};
  first.get = {50, 1, {"tcp"}};
  prefill->Reply(first);
  const auto decode = attention_[0]->WaitForCall(0);
  ASSERT_NE(decode, nullptr);
  clock_.Advance(std::chrono::milliseconds(10));
  decode->SendTokens(Encode(" b"));
  clock_.Advance(std::chrono::milliseconds(30));
  DecodeEvent last;
  for (int32_t t : Encode(" c")) last.tokens.push_back({t, 0, {}});
  last.finish = FinishReason::kStopToken;
  last.summary = DecodeSummary{{400, 4, {"posix"}}, {30, 1, {"tcp"}}, 0, 0, 2000, 9000};
  decode->Send(last);
  ASSERT_TRUE(sink_.WaitFinished().ok());
  const Usage usage = *sink_.last().usage;
  EXPECT_EQ(usage.prompt_tokens, Encode("Once upon a time").size());
  EXPECT_EQ(usage.cached_tokens, 3u);
  EXPECT_EQ(usage.generated_tokens, 3u);
  EXPECT_EQ(usage.ttft, std::chrono::milliseconds(300));
  EXPECT_EQ(usage.tpot, std::chrono::milliseconds(20));
  EXPECT_EQ(usage.kv_bytes_bf16, 9000u);
  EXPECT_EQ(usage.kv_bytes_stored, 2000u);
  EXPECT_EQ(usage.bytes_put, 1030u);
  EXPECT_EQ(usage.bytes_got, 450u);
  EXPECT_THAT(usage.lanes, ElementsAre("tcp", "posix"));
  EXPECT_EQ(usage.prefill_worker, "p0");
  EXPECT_EQ(usage.attention_worker, "a0");
  EXPECT_EQ(metrics_.cached_tokens.value(), 3);
  EXPECT_EQ(metrics_.generated_tokens.value(), 3);
  EXPECT_DOUBLE_EQ(metrics_.ttft_seconds.sum(), 0.3);
  EXPECT_DOUBLE_EQ(metrics_.tpot_seconds.sum(), 0.02);
  EXPECT_DOUBLE_EQ(metrics_.compression_ratio.sum(), 4.5);
}

TEST_F(AnswerTest, CharacterSplitOverTokensComesWhole) {
  const std::vector<int32_t> tokens = {ByteToken('a'), ByteToken('\xe2'), ByteToken('\x82'),
                                       ByteToken('\xac'), ByteToken('!')};
  const auto decode = StartDecoding(Prompt(), tokens[0]);
  ASSERT_NE(decode, nullptr);
  EXPECT_EQ(sink_.text(), "a");
  decode->SendTokens({tokens[1]});
  decode->SendTokens({tokens[2]});
  EXPECT_EQ(sink_.text(), "a");
  EXPECT_EQ(sink_.tokens().size(), 3u);  // ids do not wait for the text
  decode->SendTokens({tokens[3]});
  EXPECT_EQ(sink_.text(), "a€");
  decode->SendTokens({tokens[4]}, FinishReason::kLength);
  EXPECT_EQ(sink_.text(), "a€!");
}

TEST_F(AnswerTest, CharacterLeftIncompleteBecomesAReplacement) {
  EXPECT_EQ(Answer(Prompt(), {ByteToken('a'), ByteToken('\xe2'), ByteToken('\x82')}),
            "a\xef\xbf\xbd");
}

struct StopCase {
  const char* name;
  std::vector<std::string> stop;
  std::vector<std::string> pieces;  // each is one token's text; the first is prefill's
  std::string text;
  FinishReason finish;
};

const StopCase kStops[] = {
    {"InsideOneToken", {"b"}, {"a", "b"}, "a", FinishReason::kStopString},
    {"OverThreeTokens", {"bcd"}, {"a", "b", "c", "d", "e"}, "a", FinishReason::kStopString},
    {"InTheFirstToken", {"a"}, {"a", "b"}, "", FinishReason::kStopString},
    {"HeldBackAndReleased", {"bcd"}, {"a", "b", "c", "e"}, "abce", FinishReason::kLength},
    {"HeldBackAtTheEnd", {"bcd"}, {"a", "b", "c"}, "abc", FinishReason::kLength},
    {"Several", {"xyz", "cd"}, {"x", "c", "d"}, "x", FinishReason::kStopString},
};

class StopStringTest : public AnswerTest, public ::testing::WithParamInterface<StopCase> {};

TEST_P(StopStringTest, EndsTheAnswer) {
  const StopCase& c = GetParam();
  GenerateInput input = Prompt();
  input.stop = c.stop;
  std::vector<int32_t> tokens;
  for (const std::string& piece : c.pieces) tokens.push_back(ByteToken(piece[0]));
  if (c.finish == FinishReason::kStopString && c.text.empty()) {
    Start(input);
    prefill_[0]->WaitForCall(0)->Reply(FirstToken(tokens[0]));
    EXPECT_TRUE(sink_.WaitFinished().ok());
    EXPECT_EQ(attention_[0]->num_calls(), 0u);
  } else {
    Answer(input, tokens);
    EXPECT_EQ(attention_[0]->WaitForCall(0)->cancelled(), c.finish == FinishReason::kStopString);
  }
  EXPECT_EQ(sink_.text(), c.text);
  EXPECT_EQ(sink_.last().finish, c.finish);
}

INSTANTIATE_TEST_SUITE_P(Cases, StopStringTest, ::testing::ValuesIn(kStops),
                         [](const auto& info) { return info.param.name; });

TEST_F(AnswerTest, HeldBackTextIsNotSentBeforeItIsCertain) {
  GenerateInput input = Prompt();
  input.stop = {"xyz"};
  const auto decode = StartDecoding(input, ByteToken('a'));
  ASSERT_NE(decode, nullptr);
  decode->SendTokens({ByteToken('x')});
  decode->SendTokens({ByteToken('y')});
  EXPECT_EQ(sink_.text(), "a");
  decode->SendTokens({ByteToken('x')});
  EXPECT_EQ(sink_.text(), "axy");
  decode->SendTokens({ByteToken('y'), ByteToken('z'), ByteToken('a')});
  EXPECT_EQ(sink_.text(), "axy");
  EXPECT_TRUE(decode->cancelled());
  // Without the worker's summary the KV bytes are computed: few tokens, all bf16. The token behind
  // the stop string is not counted.
  const Usage usage = *sink_.last().usage;
  EXPECT_EQ(usage.generated_tokens, 6u);
  EXPECT_EQ(usage.kv_bytes_bf16, 8192u * (usage.prompt_tokens + 5));
  EXPECT_EQ(usage.kv_bytes_stored, usage.kv_bytes_bf16);
}

TEST_F(AnswerTest, EndOfTextHasNoText) {
  EXPECT_EQ(Answer(Prompt(), {ByteToken('a'), ByteToken('b'), kEos}, FinishReason::kStopToken),
            "ab");
  EXPECT_EQ(sink_.tokens().size(), 3u);
  EXPECT_EQ(sink_.last().finish, FinishReason::kStopToken);
}

TEST_F(AnswerTest, RequestsStopTokenHasNoText) {
  GenerateInput input = Prompt();
  input.stop_tokens = {ByteToken('b'), ByteToken('b')};
  EXPECT_EQ(Answer(input, {ByteToken('a'), ByteToken('b')}, FinishReason::kStopToken), "a");
  std::vector<int32_t> expected = {ByteToken('b'), kEos};
  std::sort(expected.begin(), expected.end());
  EXPECT_THAT(attention_[0]->WaitForCall(0)->call.stop_tokens, ElementsAreArray(expected));
}

TEST_F(AnswerTest, IgnoreEosSendsNoStopTokens) {
  GenerateInput input = Prompt();
  input.ignore_eos = true;
  Answer(input, {kEos, ByteToken('a')});
  EXPECT_THAT(attention_[0]->WaitForCall(0)->call.stop_tokens, IsEmpty());
}

struct FirstCase {
  const char* name;
  int32_t token;
  uint32_t max_tokens;
  FinishReason finish;
  size_t text_bytes;
};

TEST_F(AnswerTest, FirstTokenMayEndTheAnswer) {
  const FirstCase cases[] = {{"Eos", kEos, 10, FinishReason::kStopToken, 0},
                             {"MaxTokens", ByteToken('a'), 1, FinishReason::kLength, 1}};
  size_t call = 0;
  for (const FirstCase& c : cases) {
    SCOPED_TRACE(c.name);
    RecordingSink sink;
    pipeline_->Start(Prompt("Hi", c.max_tokens), clock_.Now() + std::chrono::seconds(9), &sink);
    prefill_[0]->WaitForCall(call++)->Reply(FirstToken(c.token));
    EXPECT_TRUE(sink.WaitFinished().ok());
    EXPECT_EQ(sink.last().finish, c.finish);
    EXPECT_EQ(sink.text().size(), c.text_bytes);
    EXPECT_EQ(sink.last().usage->generated_tokens, 1u);
    EXPECT_EQ(sink.last().usage->tpot, Duration(0));
    EXPECT_EQ(sink.last().usage->attention_worker, "");
    ExpectIdle();
  }
  EXPECT_EQ(attention_[0]->num_calls(), 0u);
}

TEST_F(AnswerTest, PromptTokensGoAsTheyAre) {
  GenerateInput input;
  input.prompt_tokens = {5, 6, 7};
  input.request_id = "mine";
  input.tenant = "blue";
  input.sampling.temperature = 0.5f;
  input.sampling.seed = 42;
  Answer(input, {ByteToken('a'), ByteToken('b')});
  const auto prefill = prefill_[0]->WaitForCall(0);
  EXPECT_THAT(prefill->call.tokens, ElementsAre(5, 6, 7));
  EXPECT_EQ(prefill->call.request_id, "mine");
  EXPECT_EQ(prefill->call.tenant, "blue");
  EXPECT_EQ(prefill->call.sampling.seed, 42u);
  EXPECT_EQ(attention_[0]->WaitForCall(0)->call.sampling.temperature, 0.5f);
  EXPECT_EQ(sink_.id(), "mine");
}

TEST_F(AnswerTest, AsksTheStoreForTheWholeChain) {
  GenerateInput input;
  for (int i = 0; i < 200; ++i) input.prompt_tokens.push_back(i);
  Answer(input, {ByteToken('a')});
  const auto name_space = NameSpaceOf(FakeInfo(WorkerRole::kPrefill), "");
  ASSERT_TRUE(name_space);
  EXPECT_EQ(store_.last_chain(), ChainKeys(*name_space, input.prompt_tokens));
  EXPECT_EQ(store_.last_deadline(), clock_.Now() + std::chrono::milliseconds(100));
}

TEST_F(AnswerTest, TenantsHaveTheirOwnChains) {
  GenerateInput input;
  for (int i = 0; i < 64; ++i) input.prompt_tokens.push_back(i);
  input.tenant = "blue";
  Answer(input, {ByteToken('a')});
  const auto blue = NameSpaceOf(FakeInfo(WorkerRole::kPrefill), "blue");
  ASSERT_TRUE(blue);
  EXPECT_NE(blue, NameSpaceOf(FakeInfo(WorkerRole::kPrefill), ""));
  EXPECT_EQ(store_.last_chain(), ChainKeys(*blue, input.prompt_tokens));
}

TEST_F(AnswerTest, UnknownNamespaceOfATenantIsAMiss) {
  WorkerInfo info = FakeInfo(WorkerRole::kPrefill);
  info.name_space = std::string(32, 0x09);  // made of fields that the gateway does not know
  EXPECT_TRUE(NameSpaceOf(info, ""));
  EXPECT_FALSE(NameSpaceOf(info, "blue"));
}

TEST_F(AnswerTest, FailingStoreIsAMiss) {
  store_.SetMatch(absl::UnavailableError("store is down"));
  GenerateInput input;
  input.prompt_tokens.assign(64, 1);
  EXPECT_EQ(Answer(input, {ByteToken('a'), ByteToken('b')}), "ab");
  EXPECT_EQ(metrics_.match_failures.value(), 1);
}

TEST_F(AnswerTest, StoreThatSaysTooMuchIsBounded) {
  store_.SetMatch(1000);
  GenerateInput input;
  input.prompt_tokens.assign(70, 1);
  EXPECT_EQ(Answer(input, {ByteToken('a'), ByteToken('b')}), "ab");
}

}  // namespace
}  // namespace oscarkv::gateway
