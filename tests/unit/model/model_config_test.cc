#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace oscarkv {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json Llama() {
  return json::parse(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
      "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1024,
      "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
      "max_position_embeddings": 8192, "rms_norm_eps": 1e-5})");
}

json With(json config, const json& changes) {
  config.merge_patch(changes);
  return config;
}

absl::StatusOr<ModelConfig> Parse(const json& config, const std::string& generation = "") {
  return ParseModelConfig(config.dump(), generation);
}

TEST(ModelConfigTest, ReferenceModel) {
  const auto config = LoadModelConfig("models/reference");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type, "qwen3");
  EXPECT_EQ(config->num_layers, 8);
  EXPECT_EQ(config->hidden_size, 384);
  EXPECT_EQ(config->intermediate_size, 1024);
  EXPECT_EQ(config->num_heads, 8);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->vocab_size, 8192);
  EXPECT_EQ(config->max_position_embeddings, 32768);
  EXPECT_FLOAT_EQ(config->rms_norm_eps, 1e-6f);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_TRUE(config->qk_norm);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_EQ(config->rope.type, RopeConfig::Type::kDefault);
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(8189, 8191));  // generation_config.json adds one
  EXPECT_EQ(config->kv_shape().num_layers, 8);
}

TEST(ModelConfigTest, NewSpellingOfLlama) {
  const auto config = LoadModelConfig("tests/golden/families/llama");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(config->rope.theta, 500000);
  EXPECT_EQ(config->rope.factor, 8);
  EXPECT_EQ(config->rope.low_freq_factor, 1);
  EXPECT_EQ(config->rope.high_freq_factor, 4);
  EXPECT_EQ(config->rope.original_max_position_embeddings, 512);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_TRUE(LoadModelConfig("tests/golden/families/qwen3").ok());
}

TEST(ModelConfigTest, OldSpellingOfLlama) {
  const auto config = Parse(With(Llama(), {{"rope_theta", 5e5},
                                           {"torch_dtype", "bfloat16"},
                                           {"rope_scaling",
                                            {{"rope_type", "llama3"},
                                             {"factor", 8},
                                             {"low_freq_factor", 1},
                                             {"high_freq_factor", 4},
                                             {"original_max_position_embeddings", 8192}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(config->rope.theta, 5e5);
  EXPECT_EQ(config->rope.factor, 8);
  EXPECT_EQ(config->head_dim, 64);  // hidden / heads
}

TEST(ModelConfigTest, DefaultsOfTheFamilies) {
  auto llama = Llama();
  llama.erase("num_key_value_heads");
  llama["num_attention_heads"] = 4;
  llama["attention_bias"] = true;
  llama["mlp_bias"] = true;
  auto config = Parse(llama);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_TRUE(config->attention_bias && config->output_bias && config->mlp_bias);
  EXPECT_EQ(config->rope.theta, 10000);

  config = Parse(With(Llama(), {{"model_type", "qwen2"},
                                {"architectures", {"Qwen2ForCausalLM"}},
                                {"sliding_window", 4096},
                                {"use_sliding_window", false}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->attention_bias);
  EXPECT_FALSE(config->output_bias || config->mlp_bias || config->qk_norm);

  config = Parse(With(Llama(), {{"model_type", "qwen3"}, {"architectures", nullptr}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 128);  // not hidden / heads

  auto mistral = With(Llama(), {{"model_type", "mistral"}, {"architectures", nullptr}});
  EXPECT_EQ(Parse(mistral).status().code(), absl::StatusCode::kUnimplemented);  // default window
  mistral["sliding_window"] = nullptr;
  EXPECT_TRUE(Parse(mistral).ok()) << Parse(mistral).status();
}

TEST(ModelConfigTest, Rope) {
  auto config = Parse(With(Llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.type, RopeConfig::Type::kLinear);
  EXPECT_EQ(config->rope.factor, 2.5);

  config = Parse(With(Llama(), {{"partial_rotary_factor", 0.5}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.partial_rotary_factor, 0.5);

  config = Parse(
      With(Llama(),
           {{"rope_parameters",
             {{"rope_type", "default"}, {"rope_theta", 1e6}, {"partial_rotary_factor", 0.25}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_EQ(config->rope.partial_rotary_factor, 0.25);
}

TEST(ModelConfigTest, InertSlidingWindowsAreFine) {
  EXPECT_TRUE(Parse(With(Llama(), {{"sliding_window", 8192}})).ok());  // the whole context
  const json qwen = With(Llama(), {{"model_type", "qwen2"},
                                   {"architectures", nullptr},
                                   {"sliding_window", 1024},
                                   {"use_sliding_window", true}});
  EXPECT_TRUE(Parse(With(qwen, {{"max_window_layers", 2}})).ok());  // no layer slides
  EXPECT_FALSE(Parse(With(qwen, {{"max_window_layers", 1}})).ok());
  EXPECT_TRUE(Parse(With(qwen, {{"layer_types", {"full_attention", "full_attention"}}})).ok());
}

TEST(ModelConfigTest, EosIdsAreUnited) {
  const auto config =
      Parse(With(Llama(), {{"eos_token_id", {7, 5}}}), R"({"eos_token_id": [5, 9]})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(5, 7, 9));
}

TEST(ModelConfigTest, IgnoresWhatTheFamilyIgnores) {
  EXPECT_TRUE(Parse(With(Llama(), {{"pretraining_tp", 1},
                                   {"_name_or_path", "x"},
                                   {"num_experts", 0},
                                   {"quantization_config", nullptr}}))
                  .ok());
}

struct Refusal {
  const char* name;
  json change;
  absl::StatusCode code;
  const char* message;
};

class RefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, IsNamed) {
  const auto config = Parse(With(Llama(), GetParam().change));
  EXPECT_EQ(config.status().code(), GetParam().code) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().message));
}

constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

json Rope(json parameters) {
  return {{"rope_scaling", std::move(parameters)}};
}

INSTANTIATE_TEST_SUITE_P(
    Config, RefusalTest,
    ::testing::Values(
        Refusal{"family", {{"model_type", "gemma2"}}, kUnimplemented, "gemma2"},
        Refusal{"no_family", {{"model_type", nullptr}}, kInvalid, "model_type is missing"},
        Refusal{"architecture",
                {{"architectures", {"LlamaForSequenceClassification"}}},
                kUnimplemented,
                "LlamaForSequenceClassification"},
        Refusal{"moe", {{"num_local_experts", 8}}, kUnimplemented, "num_local_experts"},
        Refusal{"quantized",
                {{"quantization_config", {{"quant_method", "gptq"}}}},
                kUnimplemented,
                "quantization_config"},
        Refusal{"own_code", {{"auto_map", {{"AutoModel", "x.Y"}}}}, kUnimplemented, "auto_map"},
        Refusal{"softcap", {{"attn_logit_softcapping", 50.0}}, kUnimplemented, "softcapping"},
        Refusal{"multiplier", {{"residual_multiplier", 0.22}}, kUnimplemented, "residual"},
        Refusal{"activation", {{"hidden_act", "gelu"}}, kUnimplemented, "gelu"},
        Refusal{"dtype", {{"dtype", "float8_e4m3fn"}}, kUnimplemented, "float8_e4m3fn"},
        Refusal{"window", {{"sliding_window", 4096}}, kUnimplemented, "sliding_window = 4096"},
        Refusal{"window_type", {{"sliding_window", "x"}}, kInvalid, "sliding_window"},
        Refusal{"layer_types",
                {{"layer_types", {"full_attention", "sliding_attention"}}},
                kUnimplemented,
                "sliding_attention"},
        Refusal{"layer_count", {{"layer_types", {"full_attention"}}}, kInvalid, "layer_types"},
        Refusal{"yarn", Rope({{"rope_type", "yarn"}, {"factor", 4}}), kUnimplemented, "yarn"},
        Refusal{"rope_unknown", Rope({{"type", "default"}, {"mrope_section", {16, 24, 24}}}),
                kUnimplemented, "mrope_section"},
        Refusal{"rope_no_type", Rope({{"factor", 4}}), kInvalid, "without a rope type"},
        Refusal{"rope_no_factor", Rope({{"type", "linear"}}), kInvalid, "needs factor"},
        Refusal{"rope_factor", Rope({{"type", "linear"}, {"factor", 0.5}}), kInvalid, "at least 1"},
        Refusal{"rope_contradiction",
                {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}},
                 {"rope_parameters", {{"rope_type", "default"}}}},
                kInvalid,
                "contradict"},
        Refusal{"theta_contradiction",
                {{"rope_theta", 1e4},
                 {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}}},
                kInvalid,
                "rope_theta"},
        Refusal{"theta", {{"rope_theta", -1}}, kInvalid, "rope_theta is -1"},
        Refusal{"partial", {{"partial_rotary_factor", 0.05}}, kInvalid, "partial_rotary_factor"},
        Refusal{"partial_odd", {{"partial_rotary_factor", 0.3}}, kInvalid, "19 channels"},
        Refusal{"frequencies",
                Rope({{"rope_type", "llama3"},
                      {"factor", 8},
                      {"low_freq_factor", 4},
                      {"high_freq_factor", 4},
                      {"original_max_position_embeddings", 8192}}),
                kInvalid, "high_freq_factor"},
        Refusal{"no_original",
                Rope({{"rope_type", "llama3"},
                      {"factor", 8},
                      {"low_freq_factor", 1},
                      {"high_freq_factor", 4}}),
                kInvalid, "original_max_position_embeddings"},
        Refusal{"head_dim", {{"head_dim", 96}}, kUnimplemented, "head_dim 96"},
        Refusal{"layers_zero", {{"num_hidden_layers", 0}}, kInvalid, "num_hidden_layers is 0"},
        Refusal{"layers_float", {{"num_hidden_layers", 2.5}}, kInvalid, "num_hidden_layers"},
        Refusal{"hidden_huge", {{"hidden_size", 1ull << 63}}, kInvalid, "hidden_size"},
        Refusal{"missing", {{"vocab_size", nullptr}}, kInvalid, "vocab_size is missing"},
        Refusal{"vocab", {{"vocab_size", -5}}, kInvalid, "vocab_size is -5"},
        Refusal{"group", {{"num_key_value_heads", 3}}, kInvalid, "multiple"},
        Refusal{"group_large",
                {{"num_attention_heads", 32}, {"num_key_value_heads", 1}, {"head_dim", 64}},
                kUnimplemented,
                "at most 16"},
        Refusal{"eps", {{"rms_norm_eps", 0}}, kInvalid, "rms_norm_eps"},
        Refusal{"tie", {{"tie_word_embeddings", 1}}, kInvalid, "tie_word_embeddings"},
        Refusal{"eos", {{"eos_token_id", 1000}}, kInvalid, "eos_token_id is 1000"}),
    [](const auto& info) { return info.param.name; });

TEST(ModelConfigTest, HostileJson) {
  EXPECT_EQ(ParseModelConfig("", "").status().code(), kInvalid);
  EXPECT_EQ(ParseModelConfig("[]", "").status().code(), kInvalid);
  EXPECT_EQ(ParseModelConfig("{\"a\": 1e999}", "").status().code(), kInvalid);
  EXPECT_EQ(ParseModelConfig("{\"a\": \"\\ud800\"}", "").status().code(), kInvalid);
  EXPECT_THAT(std::string(ParseModelConfig("{\"a\": 1,}", "").status().message()),
              HasSubstr("at byte 9"));
  EXPECT_THAT(std::string(ParseModelConfig("{\"a\": 1, \"a\": 2}", "").status().message()),
              HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(std::string(ParseModelConfig(std::string(100000, '['), "").status().message()),
              HasSubstr("nested deeper"));
  EXPECT_THAT(std::string(ParseModelConfig(std::string(2 << 20, ' '), "").status().message()),
              HasSubstr("limit"));
  EXPECT_FALSE(Parse(Llama(), "{").ok());
}

TEST(ModelConfigTest, NoFolder) {
  EXPECT_EQ(LoadModelConfig("no/such/model").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace oscarkv
