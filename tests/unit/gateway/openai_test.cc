// OpenAI's JSON to the core's types and back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "gateway/http/openai_request.h"
#include "gateway/http/openai_response.h"
#include "gateway/retry_hint.h"

namespace oscarkv::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

TEST(ParseCompletion, ReadsEveryField) {
  const auto r = ParseCompletionRequest(R"({
      "model": "m", "prompt": "Hello", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
      "min_p": 0.1, "repetition_penalty": 1.1, "seed": -1, "stop": ["a", "b"], "stream": true,
      "stream_options": {"include_usage": true}, "logprobs": 3, "n": 1, "presence_penalty": 0,
      "user": "me", "ignore_eos": true, "stop_token_ids": [4], "logit_bias": {}, "best_of": 1})");
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->model, "m");
  EXPECT_EQ(r->input.prompt, "Hello");
  EXPECT_TRUE(r->input.add_special);
  EXPECT_EQ(r->input.max_tokens, 7u);
  EXPECT_FLOAT_EQ(r->input.sampling.temperature, 0.5);
  EXPECT_FLOAT_EQ(r->input.sampling.top_p, 0.9);
  EXPECT_EQ(r->input.sampling.top_k, 5);
  EXPECT_FLOAT_EQ(r->input.sampling.min_p, 0.1);
  EXPECT_FLOAT_EQ(r->input.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(r->input.sampling.seed, ~uint64_t{0});
  EXPECT_TRUE(r->seeded);
  EXPECT_EQ(r->input.sampling.logprobs, 3);
  EXPECT_THAT(r->input.stop, ElementsAre("a", "b"));
  EXPECT_THAT(r->input.stop_tokens, ElementsAre(4));
  EXPECT_TRUE(r->input.ignore_eos);
  EXPECT_TRUE(r->stream && r->include_usage && r->logprobs);
}

TEST(ParseCompletion, DefaultsAreOpenAis) {
  const auto r = ParseCompletionRequest(R"({"prompt": "x", "stop": null, "seed": null})");
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->input.max_tokens, 16u);
  EXPECT_EQ(r->input.sampling.temperature, 1);
  EXPECT_FALSE(r->stream || r->include_usage || r->logprobs || r->seeded);
}

TEST(ParseCompletion, PromptsOfEveryForm) {
  EXPECT_EQ(ParseCompletionRequest(R"({"prompt": ["x"]})")->input.prompt, "x");
  EXPECT_THAT(ParseCompletionRequest(R"({"prompt": [1, 2]})")->input.prompt_tokens,
              ElementsAre(1, 2));
  EXPECT_THAT(ParseCompletionRequest(R"({"prompt": [[1, 2]]})")->input.prompt_tokens,
              ElementsAre(1, 2));
}

TEST(ParseChat, ReadsMessages) {
  const auto r = ParseChatRequest(R"({
      "messages": [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                   {"role": "assistant", "content": null,
                    "tool_calls": [{"function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]},
                   {"content": "u", "role": "user"}],
      "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 2, "response_format": {"type": "text"},
      "chat_template_kwargs": {"enable_thinking": false}})");
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(
      r->messages.dump(),
      R"([{"role":"system","content":"ab"},{"role":"assistant","content":"","tool_calls":[{"function":)"
      R"({"name":"f","arguments":{"z":1,"a":2}}}]},{"content":"u","role":"user"}])");
  EXPECT_EQ(r->input.max_tokens, 9u);
  EXPECT_EQ(r->input.sampling.logprobs, 2);
  EXPECT_EQ(r->template_variables.dump(), R"({"enable_thinking":false})");
}

TEST(Parse, RefusalsNameTheField) {
  const std::string deep = std::string(100, '[') + std::string(100, ']');
  const struct {
    bool chat;
    std::string body;
    const char* param;
    const char* says;
  } cases[] = {
      {false, "", "", "not valid JSON"},
      {false, "[]", "", "expected a JSON object"},
      {false, "{\"prompt\": \"\xff\"}", "", "not UTF-8 at byte 12"},
      {false, absl::StrCat("{\"prompt\": ", deep, "}"), "", "nested deeper than 64"},
      {false, R"({"prompt": "a", "prompt": "b"})", "", "appears twice"},
      {false, "{}", "prompt", "prompt is missing"},
      {false, R"({"prompt": ["a", "b"]})", "prompt", "several prompts"},
      {false, R"({"prompt": [1, "b"]})", "prompt", "token ids"},
      {false, R"({"prompt": [-1]})", "prompt", "token ids"},
      {false, R"({"prompt": []})", "prompt", "expected a string"},
      {false, R"({"prompt": "x", "n": 2})", "n", "one answer is given per request"},
      {false, R"({"prompt": "x", "best_of": 2})", "best_of", "not supported"},
      {false, R"({"prompt": "x", "echo": true})", "echo", "not supported"},
      {false, R"({"prompt": "x", "suffix": "y"})", "suffix", "not supported"},
      {false, R"({"prompt": "x", "logit_bias": {"1": 5}})", "logit_bias", "cannot be biased"},
      {false, R"({"prompt": "x", "frequency_penalty": 0.5})", "frequency_penalty",
       "repetition_penalty"},
      {false, R"({"prompt": "x", "max_tokens": 0})", "max_tokens", "within 1..2147483647"},
      {false, R"({"prompt": "x", "max_tokens": 1.5})", "max_tokens", "an integer"},
      {false, R"({"prompt": "x", "temperature": "hot"})", "temperature", "expected a number"},
      {false, R"({"prompt": "x", "temperature": 1e300})", "temperature", "expected a number"},
      {false, R"({"prompt": "x", "seed": 1e30})", "seed", "an integer"},
      {false, R"({"prompt": "x", "stop": [1]})", "stop", "an array of strings"},
      {false, R"({"prompt": "x", "stream": "yes"})", "stream", "true or false"},
      {false, R"({"prompt": "x", "stream_options": {}})", "stream_options", "stream is true"},
      {false, R"({"prompt": "x", "logprobs": 21})", "logprobs", "0..20"},
      {false, R"({"prompt": "x", "maxtokens": 3})", "maxtokens", "unrecognized field"},
      {true, "{}", "messages", "messages is missing"},
      {true, R"({"messages": []})", "messages", "1..4096"},
      {true, R"({"messages": [{"content": "x"}]})", "messages[0]", "with a role"},
      {true, R"({"messages": [{"role": "user"}]})", "messages[0]", "content is missing"},
      {true, R"({"messages": [{"role": "user", "content": 3}]})", "messages[0].content",
       "text parts"},
      {true, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content", "images and audio are not supported"},
      {true, R"({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2})",
       "top_logprobs", "logprobs is true"},
      {true,
       R"({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"bos_token": ""}})",
       "chat_template_kwargs", "bos_token cannot be set"},
      {true, R"({"messages": [{"role": "user", "content": "x"}], "tools": [{}]})", "tools",
       "not read out of answers"},
      {true,
       R"({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}})",
       "response_format", "only text"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.body);
    const auto r = c.chat ? ParseChatRequest(c.body) : ParseCompletionRequest(c.body);
    EXPECT_TRUE(absl::IsInvalidArgument(r.status())) << r.status();
    EXPECT_EQ(ParamOf(r.status()), c.param);
    EXPECT_THAT(std::string(r.status().message()), HasSubstr(c.says));
  }
}

TEST(Parse, ManyMembersAreRefusedBeforeTheyCostTime) {
  std::string body = "{\"prompt\": \"x\", \"metadata\": {";
  for (int i = 0; i < 200'000; ++i) absl::StrAppend(&body, i == 0 ? "" : ",", "\"", i, "\":0");
  EXPECT_THAT(std::string(ParseCompletionRequest(body + "}}").status().message()),
              HasSubstr("more than 1024 members"));
}

class AnswerTest : public ::testing::Test {
 protected:
  static const Tokenizer& tokenizer() {
    static const auto* t = Tokenizer::Load("models/reference").value().release();
    return *t;
  }
  static AnswerIdentity Identity(bool chat) {
    AnswerIdentity identity;
    identity.chat = chat;
    identity.include_usage = true;
    identity.request_id = "r1";
    identity.model = "m";
    identity.created = 5;
    return identity;
  }
  static GenerateOutput Part(const std::string& text) {
    GenerateOutput part;
    part.text = text;
    const std::vector<int32_t> ids = tokenizer().Encode(text).value();
    for (const int32_t id : ids) part.tokens.push_back({id, -0.5f, {{id, -0.5f}}});
    return part;
  }
  static GenerateOutput Last(const std::string& text, FinishReason finish) {
    GenerateOutput part = Part(text);
    part.finish = finish;
    part.usage.emplace();
    part.usage->prompt_tokens = 10;
    part.usage->cached_tokens = 8;
    part.usage->generated_tokens = 3;
    part.usage->lanes = {"sysv"};
    return part;
  }
  static std::vector<std::string> SplitEvents(const std::string& events) {
    std::vector<std::string> out;
    size_t at = 0;
    while (at < events.size()) {
      const size_t end = events.find("\n\n", at);
      EXPECT_EQ(events.compare(at, 6, "data: "), 0);
      out.push_back(events.substr(at + 6, end - at - 6));
      at = end + 2;
    }
    return out;
  }
};

TEST_F(AnswerTest, ChatStream) {
  OpenAiAnswer answer(Identity(true), &tokenizer());
  const auto first = SplitEvents(answer.Events(Part("Hi")));
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(
      first[0],
      R"({"id":"chatcmpl-r1","object":"chat.completion.chunk","created":5,"model":"m","choices":)"
      R"([{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,)"
      R"("finish_reason":null}],"usage":null})");
  EXPECT_EQ(Json::parse(first[1])["choices"][0]["delta"]["content"], "Hi");
  EXPECT_EQ(answer.Events(Part("")), "") << "an unfinished character is no event";
  const auto last = SplitEvents(answer.Events(Last("!", FinishReason::kStopToken)));
  ASSERT_EQ(last.size(), 4u);
  EXPECT_EQ(Json::parse(last[0])["choices"][0]["delta"]["content"], "!");
  EXPECT_EQ(Json::parse(last[1])["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(Json::parse(last[1])["oscarkv"]["lanes"][0], "sysv");
  const Json usage = Json::parse(last[2]);
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"].dump(), R"({"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,)"
                                   R"("prompt_tokens_details":{"cached_tokens":8}})");
  EXPECT_EQ(last[3], "[DONE]");
}

TEST_F(AnswerTest, WholeAnswers) {
  for (const bool chat : {false, true}) {
    OpenAiAnswer answer(Identity(chat), &tokenizer());
    answer.Add(Part("Hi"));
    answer.Add(Last(" there", FinishReason::kLength));
    const Json json = Json::parse(answer.Whole());
    EXPECT_EQ(json["object"], chat ? "chat.completion" : "text_completion");
    const Json& choice = json["choices"][0];
    EXPECT_EQ(chat ? choice["message"]["content"] : choice["text"], "Hi there");
    EXPECT_EQ(choice["finish_reason"], "length");
    EXPECT_TRUE(choice["logprobs"].is_null());
    EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 8);
  }
}

TEST_F(AnswerTest, Logprobs) {
  AnswerIdentity identity = Identity(false);
  identity.logprobs = true;
  OpenAiAnswer completion(identity, &tokenizer());
  completion.Add(Part("Hi"));
  completion.Add(Last(" there", FinishReason::kLength));
  const Json whole = Json::parse(completion.Whole())["choices"][0]["logprobs"];
  std::string text;
  for (const Json& token : whole["tokens"]) text += token.get<std::string>();
  EXPECT_EQ(text, "Hi there");
  EXPECT_EQ(whole["text_offset"].size(), whole["tokens"].size());
  EXPECT_EQ(whole["top_logprobs"][0].size(), 1u);
  identity.chat = true;
  OpenAiAnswer chat(identity, &tokenizer());
  const Json delta = Json::parse(SplitEvents(chat.Events(Part("é")))[1])["choices"][0];
  std::string bytes;
  for (const Json& token : delta["logprobs"]["content"]) {
    for (const Json& b : token["bytes"]) bytes.push_back(static_cast<char>(b.get<int>()));
    EXPECT_EQ(token["top_logprobs"].size(), 1u);
  }
  EXPECT_EQ(bytes, "é");
}

TEST(Errors, HaveOpenAisShape) {
  const HttpResponse r =
      ErrorResponse(WithParam(absl::InvalidArgumentError("say \"x\"\n"), "prompt"));
  EXPECT_EQ(r.status, 400);
  EXPECT_EQ(r.body,
            "{\"error\":{\"message\":\"say \\\"x\\\"\\n\",\"type\":\"invalid_request_error\","
            "\"param\":\"prompt\",\"code\":\"invalid_argument\"}}\n");
  const HttpResponse busy = ErrorResponse(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(busy.headers[0], (std::pair<std::string, std::string>("Retry-After", "1")));
  EXPECT_THAT(busy.body, HasSubstr("\"type\":\"rate_limit_error\""));
  EXPECT_THAT(busy.body, HasSubstr("\"code\":\"rate_limit_exceeded\""));
  const HttpResponse hinted =
      ErrorResponse(WithRetryHint(absl::ResourceExhaustedError("full"), 11.2));
  EXPECT_EQ(hinted.headers[0].second, "12");
  EXPECT_EQ(ErrorResponse(absl::DeadlineExceededError("late")).status, 504);
  EXPECT_EQ(OpenAiAnswer::ErrorEvent(absl::UnavailableError("gone")),
            "data: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\",\"param\":null,"
            "\"code\":\"unavailable\"}}\n\n");
}

}  // namespace
}  // namespace oscarkv::gateway
