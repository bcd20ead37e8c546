#include "gateway/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/fake_worker_stubs.h"

namespace oscarkv::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::GenerateRequest FullRequest() {
  v1::GenerateRequest r;
  r.set_request_id("id");
  r.set_prompt("Grüße");
  r.set_max_tokens(7);
  r.mutable_sampling()->set_temperature(0.5f);
  r.mutable_sampling()->set_top_k(3);
  r.mutable_sampling()->set_top_p(0.25f);
  r.mutable_sampling()->set_min_p(0.125f);
  r.mutable_sampling()->set_repetition_penalty(1.5f);
  r.mutable_sampling()->set_seed(99);
  r.mutable_sampling()->set_logprobs(4);
  r.add_stop("a");
  r.add_stop("b");
  r.add_stop_tokens(11);
  r.set_ignore_eos(true);
  r.set_tenant("blue");
  return r;
}

TEST(ParseGenerateRequest, AllFields) {
  const auto input = wire::ParseGenerateRequest(FullRequest().SerializeAsString());
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->request_id, "id");
  EXPECT_EQ(input->prompt, "Grüße");
  EXPECT_EQ(input->max_tokens, 7u);
  EXPECT_EQ(input->sampling.temperature, 0.5f);
  EXPECT_EQ(input->sampling.top_k, 3);
  EXPECT_EQ(input->sampling.top_p, 0.25f);
  EXPECT_EQ(input->sampling.min_p, 0.125f);
  EXPECT_EQ(input->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(input->sampling.seed, 99u);
  EXPECT_EQ(input->sampling.logprobs, 4);
  EXPECT_THAT(input->stop, ElementsAre("a", "b"));
  EXPECT_THAT(input->stop_tokens, ElementsAre(11));
  EXPECT_TRUE(input->ignore_eos);
  EXPECT_EQ(input->tenant, "blue");
}

TEST(ParseGenerateRequest, AbsentSamplingIsGreedyAndZeroesAreOff) {
  v1::GenerateRequest r;
  r.set_prompt("x");
  for (bool present : {false, true}) {
    if (present) r.mutable_sampling()->set_seed(1);
    const auto input = wire::ParseGenerateRequest(r.SerializeAsString());
    ASSERT_TRUE(input.ok());
    EXPECT_EQ(input->sampling.temperature, 0);
    EXPECT_EQ(input->sampling.top_p, 1);
    EXPECT_EQ(input->sampling.repetition_penalty, 1);
    EXPECT_TRUE(ValidateSampling(input->sampling).ok());
  }
}

struct BadCase {
  const char* name;
  std::string bytes;
  const char* says;
};

// A length-delimited field.
std::string Field(int number, const std::string& payload) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(payload.size()) +
         payload;
}

TEST(ParseGenerateRequest, Refusals) {
  v1::GenerateRequest large_k, large_logprobs;
  large_k.mutable_sampling()->set_top_k(0x80000000u);
  large_logprobs.mutable_sampling()->set_logprobs(0xffffffffu);
  const BadCase cases[] = {
      {"PromptNotUtf8", Field(2, "ab\xff"), "prompt is not UTF-8 at byte 2 (0xff)"},
      {"StopNotUtf8", Field(2, "ok") + Field(6, "\xc3"), "stop is not UTF-8 at byte 0 (0xc3)"},
      {"IdNotUtf8", Field(1, "\x80"), "request_id is not UTF-8"},
      {"TenantNotUtf8", Field(9, "x\xfe"), "tenant is not UTF-8 at byte 1"},
      {"SecondPromptNotUtf8", Field(2, "ok") + Field(2, "\xff"), "prompt is not UTF-8 at byte 0"},
      {"Truncated", std::string("\x12\x10short", 7), "no oscarkv.v1.GenerateRequest"},
      {"BadSampling", Field(5, "\xff"), "no oscarkv.v1.GenerateRequest"},
      {"EndGroup", "\x0c", "no oscarkv.v1.GenerateRequest"},
      {"TopKTooLarge", large_k.SerializeAsString(), "sampling.top_k is 2147483648"},
      {"LogprobsTooLarge", large_logprobs.SerializeAsString(), "sampling.logprobs is 4294967295"},
  };
  for (const BadCase& c : cases) {
    SCOPED_TRACE(c.name);
    const auto input = wire::ParseGenerateRequest(c.bytes);
    EXPECT_EQ(input.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(input.status().message(), HasSubstr(c.says));
  }
}

TEST(ParseTokenizeRequest, TextOrReason) {
  v1::TokenizeRequest r;
  r.set_text("hé");
  EXPECT_EQ(wire::ParseTokenizeRequest(r.SerializeAsString()).value(), "hé");
  EXPECT_THAT(wire::ParseTokenizeRequest(Field(1, "\xff")).status().message(),
              HasSubstr("text is not UTF-8 at byte 0"));
}

TEST(ToProto, Answer) {
  GenerateOutput output;
  output.text = "hi";
  output.tokens = {{5, -1.5f, {{5, -1.5f}, {6, -2.0f}}}};
  output.finish = FinishReason::kStopString;
  Usage usage;
  usage.prompt_tokens = 1;
  usage.cached_tokens = 2;
  usage.generated_tokens = 3;
  usage.ttft = std::chrono::milliseconds(4);
  usage.tpot = std::chrono::microseconds(5);
  usage.kv_bytes_bf16 = 6;
  usage.kv_bytes_stored = 7;
  usage.bytes_put = 8;
  usage.bytes_got = 9;
  usage.lanes = {"tcp"};
  usage.prefill_worker = "p";
  usage.attention_worker = "a";
  output.usage = usage;
  EXPECT_EQ(
      wire::ToProto("id", output).ShortDebugString(),
      "request_id: \"id\" text: \"hi\" tokens { id: 5 logprob: -1.5 top { token: 5 logprob: "
      "-1.5 } top { token: 6 logprob: -2 } } finish_reason: FINISH_REASON_STOP_STRING usage { "
      "prompt_tokens: 1 cached_tokens: 2 generated_tokens: 3 ttft_us: 4000 tpot_us: 5 "
      "kv_bytes_bf16: 6 kv_bytes_stored: 7 bytes_put: 8 bytes_got: 9 lanes: \"tcp\" "
      "prefill_worker: \"p\" attention_worker: \"a\" }");
  EXPECT_EQ(wire::ToProto("id", GenerateOutput()).ShortDebugString(), "request_id: \"id\"");
}

TEST(ToProto, Calls) {
  SamplingParams sampling;
  sampling.temperature = 0.5f;
  sampling.seed = 9;
  EXPECT_EQ(wire::ToProto(PrefillCall{"r", {1, 2}, sampling, "t"}).ShortDebugString(),
            "request_id: \"r\" tokens: 1 tokens: 2 sampling { temperature: 0.5 top_p: 1 "
            "repetition_penalty: 1 seed: 9 } tenant: \"t\"");
  EXPECT_EQ(wire::ToProto(DecodeCall{"r", {1, 2}, 1, sampling, 10, {3}, "t"}).ShortDebugString(),
            "request_id: \"r\" tokens: 1 tokens: 2 prompt_tokens: 1 sampling { temperature: 0.5 "
            "top_p: 1 repetition_penalty: 1 seed: 9 } max_tokens: 10 stop_tokens: 3 tenant: \"t\"");
}

TEST(FromProto, PrefillResult) {
  v1::PrefillResponse r;
  EXPECT_EQ(wire::FromProto(r).status().code(), absl::StatusCode::kInternal);
  r.mutable_first_token()->set_id(4);
  r.set_cached_tokens(64);
  r.mutable_put()->set_bytes(10);
  r.mutable_put()->add_lanes("posix");
  r.mutable_get()->set_blocks(2);
  r.set_blocks_not_stored(1);
  const auto result = wire::FromProto(r);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->first_token.token, 4);
  EXPECT_EQ(result->cached_tokens, 64u);
  EXPECT_EQ(result->put.bytes, 10u);
  EXPECT_THAT(result->put.lanes, ElementsAre("posix"));
  EXPECT_EQ(result->get.blocks, 2u);
  EXPECT_EQ(result->blocks_not_stored, 1u);
}

TEST(FromProto, DecodeEvent) {
  v1::DecodeResponse r;
  r.add_tokens()->set_id(1);
  DecodeEvent event = wire::FromProto(r);
  EXPECT_EQ(event.tokens.size(), 1u);
  EXPECT_EQ(event.finish, FinishReason::kNone);
  EXPECT_FALSE(event.summary);
  r.set_finish_reason(v1::FINISH_REASON_CONTEXT);
  r.mutable_summary()->set_kv_bytes_stored(5);
  r.mutable_summary()->mutable_get()->set_bytes(6);
  event = wire::FromProto(r);
  EXPECT_EQ(event.finish, FinishReason::kContext);
  ASSERT_TRUE(event.summary);
  EXPECT_EQ(event.summary->kv_bytes_stored, 5u);
  EXPECT_EQ(event.summary->get.bytes, 6u);
}

TEST(WorkerInfo, ThereAndBack) {
  WorkerState state;
  state.role = WorkerRole::kAttention;
  state.endpoint = "h:1";
  state.info = FakeInfo(WorkerRole::kAttention);
  state.info.running = 3;
  state.info.pool_pages_free = 4;
  state.info.data_free = true;
  const v1::WorkerStatus status = wire::ToProto(state);
  EXPECT_TRUE(status.reachable());
  EXPECT_EQ(status.error(), "");
  const WorkerInfo back = wire::FromProto(status.info());
  EXPECT_EQ(back.role, "attention");
  EXPECT_EQ(back.model_fingerprint, state.info.model_fingerprint);
  EXPECT_EQ(back.codec_fingerprint, state.info.codec_fingerprint);
  EXPECT_EQ(back.name_space, state.info.name_space);
  EXPECT_EQ(back.running, 3u);
  EXPECT_EQ(back.pool_pages_free, 4u);
  EXPECT_EQ(back.kv_bytes_per_token_stored, state.info.kv_bytes_per_token_stored);
  EXPECT_TRUE(back.data_free);
  state.status = absl::UnavailableError("gone");
  EXPECT_FALSE(wire::ToProto(state).reachable());
  state.status = absl::FailedPreconditionError("differs");
  EXPECT_TRUE(wire::ToProto(state).reachable());
  EXPECT_EQ(wire::ToProto(state).error(), "differs");
}

}  // namespace
}  // namespace oscarkv::gateway
