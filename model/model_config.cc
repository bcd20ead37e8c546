#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"
#include "model/rope_config.h"

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// What differs between the families (by the model classes that define them).
struct Family {
  const char* model_type;
  const char* architecture;
  bool qk_norm;
  bool always_qkv_bias;
  bool reads_attention_bias;  // biases on q, k, v and o
  bool reads_mlp_bias;
  int default_head_dim;           // 0: hidden_size / num_attention_heads
  int default_sliding_window;     // when the key is absent; 0: none
  bool needs_use_sliding_window;  // the window counts only with use_sliding_window
};
constexpr Family kFamilies[] = {
    {"qwen3", "Qwen3ForCausalLM", true, false, true, false, 128, 0, true},
    {"qwen2", "Qwen2ForCausalLM", false, true, false, false, 0, 0, true},
    {"llama", "LlamaForCausalLM", false, false, true, true, 0, 0, false},
    {"mistral", "MistralForCausalLM", false, false, false, false, 0, 4096, false},
};

// Keys by which derived architectures change the computation. null, false, 0, 1.0 for multipliers
// and empty containers mean "off". Keys that no supported family defines and that are not listed
// here are ignored, as the families' own code ignores them.
constexpr absl::string_view kRefusedWhenSet[] = {
    "quantization_config",
    "compression_config",
    "auto_map",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "decoder_sparse_step",
    "q_lora_rank",
    "kv_lora_rank",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "clip_qkv",
    "alibi",
    "attention_chunk_size",
    "attn_temperature_tuning",
    "no_rope_layers",
    "no_rope_layer_interval",
    "use_qk_norm",
    "use_mrope",
    "vision_config",
    "audio_config",
    "text_config",
    "cross_attention_layers",
    "is_encoder_decoder",
    "add_cross_attention",
    "parallel_attn",
    "use_parallel_residual",
    "num_nextn_predict_layers",
};
constexpr absl::string_view kRefusedUnlessOne[] = {
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb",
};
// Its value in every supported family is 1/sqrt(head_dim).
constexpr absl::string_view kRefusedWhenPresent[] = {"attention_multiplier", "scale_depth",
                                                     "dim_model_base"};

absl::Status Wrong(absl::string_view key, const json* value, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", key, value == nullptr ? " is missing" : " is ",
                   value == nullptr ? "" : JsonExcerpt(*value), ", expected ", expected));
}

absl::Status Unsupported(absl::string_view key, const json& value, absl::string_view hint = "") {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", key, " = ", JsonExcerpt(value), " is not supported", hint));
}

absl::StatusOr<int> Integer(const json& config, absl::string_view key, int64_t max) {
  const json* value = FindMember(config, key);
  int64_t number = 0;
  if (value == nullptr || !JsonInteger(*value, 1, max, &number)) {
    return Wrong(key, value, absl::StrCat("an integer in 1..", max));
  }
  return static_cast<int>(number);
}

absl::StatusOr<bool> Boolean(const json& config, absl::string_view key, bool if_absent) {
  const json* value = FindMember(config, key);
  if (value == nullptr) return if_absent;
  if (!value->is_boolean()) return Wrong(key, value, "true or false");
  return value->get<bool>();
}

bool IsOff(const json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  return value.empty();  // "", [], {}
}

absl::StatusOr<Family> FindFamily(const json& config) {
  const json* type = FindMember(config, "model_type");
  if (type == nullptr || !type->is_string()) return Wrong("model_type", type, "a string");
  const auto family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                   [&](const Family& f) { return *type == f.model_type; });
  if (family == std::end(kFamilies)) {
    return Unsupported("model_type", *type, "; supported: qwen3, qwen2, llama, mistral");
  }
  if (const json* names = FindMember(config, "architectures"); names != nullptr) {
    if (!names->is_array()) return Wrong("architectures", names, "a list of names");
    for (const json& name : *names) {
      if (name != family->architecture) {
        return Unsupported("architectures", *names,
                           absl::StrCat(" with model_type ", family->model_type, "; expected ",
                                        family->architecture));
      }
    }
  }
  return *family;
}

absl::Status RefuseOtherMaths(const json& config) {
  for (const absl::string_view key : kRefusedWhenSet) {
    const json* value = FindMember(config, key);
    if (value != nullptr && !IsOff(*value)) return Unsupported(key, *value);
  }
  for (const absl::string_view key : kRefusedUnlessOne) {
    const json* value = FindMember(config, key);
    if (value != nullptr && *value != 1) return Unsupported(key, *value);
  }
  for (const absl::string_view key : kRefusedWhenPresent) {
    const json* value = FindMember(config, key);
    if (value != nullptr) return Unsupported(key, *value);
  }
  const json* act = FindMember(config, "hidden_act");
  if (act != nullptr && *act != "silu" && *act != "swish") {
    return Unsupported("hidden_act", *act, "; supported: silu");
  }
  for (const absl::string_view key : {"torch_dtype", "dtype"}) {
    const json* dtype = FindMember(config, key);
    if (dtype != nullptr && *dtype != "bfloat16" && *dtype != "float16" && *dtype != "float32") {
      return Unsupported(key, *dtype, "; supported: bfloat16, float16, float32");
    }
  }
  return absl::OkStatus();
}

// A window that spans the whole context hides nothing and is fine.
absl::Status RefuseSlidingWindow(const json& config, const Family& family,
                                 const ModelConfig& model) {
  const bool absent = !config.contains("sliding_window");
  int64_t window = absent ? family.default_sliding_window : 0;
  const json* value = FindMember(config, "sliding_window");
  if (value != nullptr && !IsOff(*value) && !JsonInteger(*value, 1, int64_t{1} << 40, &window)) {
    return Wrong("sliding_window", value, "a positive integer or null");
  }
  ASSIGN_OR_RETURN(const bool use, Boolean(config, "use_sliding_window", false));
  if (family.needs_use_sliding_window && !use) window = 0;
  const bool slides = window > 0 && window < model.max_position_embeddings;

  const json* layers = FindMember(config, "layer_types");
  if (layers != nullptr) {
    if (!layers->is_array() || layers->size() != static_cast<size_t>(model.num_layers)) {
      return Wrong("layer_types", layers,
                   absl::StrCat("a list of ", model.num_layers, " names (num_hidden_layers)"));
    }
    for (const json& layer : *layers) {
      if (layer != "full_attention") return Unsupported("layer_types", layer);
    }
    return absl::OkStatus();  // an explicit list says which layers use the window: none
  }
  if (!slides) return absl::OkStatus();
  if (family.needs_use_sliding_window) {
    // Only the layers from max_window_layers on would slide.
    const json* first = FindMember(config, "max_window_layers");
    int64_t index = 0;
    if (first != nullptr && JsonInteger(*first, 0, int64_t{1} << 40, &index) &&
        index >= model.num_layers) {
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat(
      "config.json: sliding_window = ", window,
      absent ? absl::StrCat(" (the default of ", family.model_type, ")") : "",
      " below max_position_embeddings ", model.max_position_embeddings, " is not supported"));
}

absl::Status AddEosIds(const json& object, absl::string_view file, int vocab_size,
                       std::set<int>* ids) {
  const json* value = FindMember(object, "eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    int64_t id = 0;
    if (!JsonInteger(item, 0, vocab_size - 1, &id)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": eos_token_id is ", JsonExcerpt(item),
                                                     ", expected an integer in 0..",
                                                     vocab_size - 1));
    }
    ids->insert(static_cast<int>(id));
  }
  return absl::OkStatus();
}

absl::Status ParseSizes(const json& config, const Family& family, ModelConfig* out) {
  ASSIGN_OR_RETURN(out->num_layers, Integer(config, "num_hidden_layers", 1024));
  ASSIGN_OR_RETURN(out->hidden_size, Integer(config, "hidden_size", 1 << 17));
  ASSIGN_OR_RETURN(out->intermediate_size, Integer(config, "intermediate_size", 1 << 20));
  ASSIGN_OR_RETURN(out->num_heads, Integer(config, "num_attention_heads", 1024));
  ASSIGN_OR_RETURN(out->vocab_size, Integer(config, "vocab_size", 1 << 22));
  ASSIGN_OR_RETURN(out->max_position_embeddings,
                   Integer(config, "max_position_embeddings", 1 << 26));
  out->num_kv_heads = out->num_heads;  // Llama's default; the others name it
  if (absl::string_view(family.model_type) != "llama" ||
      FindMember(config, "num_key_value_heads") != nullptr) {
    ASSIGN_OR_RETURN(out->num_kv_heads, Integer(config, "num_key_value_heads", out->num_heads));
  }
  if (out->num_heads % out->num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: num_attention_heads ", out->num_heads,
                     " is not a multiple of num_key_value_heads ", out->num_kv_heads));
  }
  if (out->num_heads / out->num_kv_heads > kernels::kMaxGroup) {
    return absl::UnimplementedError(
        absl::StrCat("config.json: ", out->num_heads, " query heads on ", out->num_kv_heads,
                     " kv heads is not supported; at most ", kernels::kMaxGroup, " per kv head"));
  }
  if (FindMember(config, "head_dim") != nullptr) {
    ASSIGN_OR_RETURN(out->head_dim, Integer(config, "head_dim", 1 << 16));
  } else if (family.default_head_dim != 0) {
    out->head_dim = family.default_head_dim;
  } else if (out->hidden_size % out->num_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: head_dim is missing and hidden_size ", out->hidden_size,
                     " is not a multiple of num_attention_heads ", out->num_heads));
  } else {
    out->head_dim = out->hidden_size / out->num_heads;
  }
  if (!kernels::IsSupportedHeadDim(out->head_dim)) {
    return absl::UnimplementedError(absl::StrCat("config.json: head_dim ", out->head_dim,
                                                 " is not supported; supported: 64, 128"));
  }
  return absl::OkStatus();
}

absl::Status ParseBiases(const json& config, const Family& family, ModelConfig* out) {
  ASSIGN_OR_RETURN(const bool attention, Boolean(config, "attention_bias", false));
  ASSIGN_OR_RETURN(const bool mlp, Boolean(config, "mlp_bias", false));
  if (attention && !family.reads_attention_bias && !family.always_qkv_bias) {
    return Unsupported("attention_bias", true, absl::StrCat(" with ", family.model_type));
  }
  if (mlp && !family.reads_mlp_bias) {
    return Unsupported("mlp_bias", true, absl::StrCat(" with ", family.model_type));
  }
  out->attention_bias = family.always_qkv_bias || attention;
  out->output_bias = family.reads_attention_bias && attention;
  out->mlp_bias = mlp;
  out->qk_norm = family.qk_norm;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& config_json,
                                             const std::string& generation_json) {
  const JsonLimits limits{.max_bytes = kMaxConfigBytes, .max_depth = 16};
  ASSIGN_OR_RETURN(const json config, ParseBoundedJson(config_json, "config.json", limits));
  if (!config.is_object()) return absl::InvalidArgumentError("config.json: not an object");
  ASSIGN_OR_RETURN(const Family family, FindFamily(config));
  RETURN_IF_ERROR(RefuseOtherMaths(config));

  ModelConfig out;
  out.model_type = std::string(family.model_type);
  RETURN_IF_ERROR(ParseSizes(config, family, &out));
  RETURN_IF_ERROR(ParseBiases(config, family, &out));
  RETURN_IF_ERROR(RefuseSlidingWindow(config, family, out));
  ASSIGN_OR_RETURN(out.rope, ParseRopeConfig(config, out.head_dim));
  ASSIGN_OR_RETURN(out.tie_word_embeddings, Boolean(config, "tie_word_embeddings", false));
  if (const json* eps = FindMember(config, "rms_norm_eps"); eps != nullptr) {
    const double value = eps->is_number() ? eps->get<double>() : std::nan("");
    if (!(value > 0 && value < 1)) {
      return Wrong("rms_norm_eps", eps, "a number between 0 and 1");
    }
    out.rms_norm_eps = static_cast<float>(value);
  }

  std::set<int> eos;
  RETURN_IF_ERROR(AddEosIds(config, "config.json", out.vocab_size, &eos));
  if (!generation_json.empty()) {
    ASSIGN_OR_RETURN(const json generation,
                     ParseBoundedJson(generation_json, "generation_config.json", limits));
    if (!generation.is_object()) {
      return absl::InvalidArgumentError("generation_config.json: not an object");
    }
    RETURN_IF_ERROR(AddEosIds(generation, "generation_config.json", out.vocab_size, &eos));
  }
  out.eos_token_ids.assign(eos.begin(), eos.end());
  return out;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::string config,
                   ReadTextFile(absl::StrCat(model_dir, "/config.json"), kMaxConfigBytes));
  absl::StatusOr<std::string> generation =
      ReadTextFile(absl::StrCat(model_dir, "/generation_config.json"), kMaxConfigBytes);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  absl::StatusOr<ModelConfig> parsed = ParseModelConfig(config, generation.value_or(""));
  if (parsed.ok()) return parsed;
  return absl::Status(parsed.status().code(),
                      absl::StrCat(model_dir, ": ", parsed.status().message()));
}

}  // namespace oscarkv
