#include "gateway/http/openai_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "gateway/validate.h"
#include "model/bounded_json.h"

namespace oscarkv::gateway {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kParamUrl[] = "oscarkv/param";
// What a chat template is given by us: nobody may ask for another prompt than that of his messages.
constexpr absl::string_view kReservedVariables[] = {"messages", "bos_token", "eos_token",
                                                    "unk_token", "pad_token"};
constexpr int kCompletionMaxTokens = 16;  // OpenAI's default

absl::Status Bad(absl::string_view param, absl::string_view expected, const Json& value) {
  return WithParam(absl::InvalidArgumentError(
                       absl::StrCat(param, " is ", JsonExcerpt(value), ": expected ", expected)),
                   param);
}

absl::Status Unsupported(absl::string_view param, absl::string_view what) {
  return WithParam(absl::InvalidArgumentError(absl::StrCat(param, ": ", what)), param);
}

// Reads the members of one JSON object, and knows which ones nobody asked for.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  const Json* Find(absl::string_view name) {
    known_.emplace_back(name);
    const auto it = object_.find(std::string(name));
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  absl::Status Bool(absl::string_view name, bool* out) {
    const Json* v = Find(name);
    if (v == nullptr) return absl::OkStatus();
    if (!v->is_boolean()) return Bad(name, "true or false", *v);
    *out = v->get<bool>();
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Integer(absl::string_view name, int64_t min, int64_t max, T* out) {
    const Json* v = Find(name);
    if (v == nullptr) return absl::OkStatus();
    int64_t value = 0;
    if (!JsonInteger(*v, min, max, &value)) {
      return Bad(name, absl::StrCat("an integer within ", min, "..", max), *v);
    }
    *out = static_cast<T>(value);
    return absl::OkStatus();
  }
  // Ranges are the sampler's to check.
  absl::Status Number(absl::string_view name, float* out) {
    const Json* v = Find(name);
    if (v == nullptr) return absl::OkStatus();
    const double value = v->is_number() ? v->get<double>() : NAN;
    if (!(std::fabs(value) <= std::numeric_limits<float>::max())) return Bad(name, "a number", *v);
    *out = static_cast<float>(value);
    return absl::OkStatus();
  }
  absl::Status Text(absl::string_view name, std::string* out) {
    const Json* v = Find(name);
    if (v == nullptr) return absl::OkStatus();
    if (!v->is_string()) return Bad(name, "a string", *v);
    *out = v->get<std::string>();
    return absl::OkStatus();
  }
  // Fields that say something to a server that has a use for them.
  void Ignore(std::initializer_list<absl::string_view> names) {
    for (absl::string_view name : names) known_.emplace_back(name);
  }
  // A field whose only supported value is the one that means nothing.
  absl::Status Only(absl::string_view name, const std::vector<Json>& allowed,
                    absl::string_view why) {
    const Json* v = Find(name);
    if (v == nullptr || std::find(allowed.begin(), allowed.end(), *v) != allowed.end()) {
      return absl::OkStatus();
    }
    return Unsupported(name, absl::StrCat(JsonExcerpt(*v), " is not supported: ", why));
  }
  absl::Status NothingElse() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        return WithParam(
            absl::InvalidArgumentError(absl::StrCat("unrecognized field ", JsonExcerpt(Json(key)))),
            key);
      }
    }
    return absl::OkStatus();
  }

 private:
  const Json& object_;
  std::vector<std::string> known_;
};

absl::StatusOr<Json> ParseBody(absl::string_view body, const OpenAiLimits& limits) {
  JsonLimits json;
  json.max_bytes = limits.max_body_bytes;
  json.max_depth = limits.max_depth;
  json.max_members = 1024;
  if (absl::Status utf8 = ValidateUtf8("the body", body); !utf8.ok()) return utf8;
  ASSIGN_OR_RETURN(Json parsed, ParseBoundedOrderedJson(body, "the body", json));
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError("the body: expected a JSON object");
  }
  return parsed;
}

absl::Status ParseStop(Fields* fields, std::vector<std::string>* stop) {
  const Json* v = fields->Find("stop");
  if (v == nullptr) return absl::OkStatus();
  if (v->is_string()) {
    *stop = {v->get<std::string>()};
    return absl::OkStatus();
  }
  if (!v->is_array()) return Bad("stop", "a string or an array of strings", *v);
  for (const Json& s : *v) {
    if (!s.is_string()) return Bad("stop", "a string or an array of strings", *v);
    stop->push_back(s.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ParseTokenIds(const Json& array, absl::string_view name, std::vector<int32_t>* ids) {
  ids->reserve(array.size());
  for (const Json& id : array) {
    int64_t value = 0;
    if (!JsonInteger(id, 0, std::numeric_limits<int32_t>::max(), &value)) {
      return Bad(name, "token ids", id);
    }
    ids->push_back(static_cast<int32_t>(value));
  }
  return absl::OkStatus();
}

// What both endpoints share.
absl::Status ParseCommon(Fields* f, OpenAiRequest* out) {
  GenerateInput& in = out->input;
  in.sampling.temperature = 1;  // OpenAI's default; gRPC's is greedy
  RETURN_IF_ERROR(f->Text("model", &out->model));
  RETURN_IF_ERROR(f->Number("temperature", &in.sampling.temperature));
  RETURN_IF_ERROR(f->Number("top_p", &in.sampling.top_p));
  RETURN_IF_ERROR(f->Integer("top_k", -1, std::numeric_limits<int>::max(), &in.sampling.top_k));
  in.sampling.top_k = std::max(in.sampling.top_k, 0);  // -1 turns it off elsewhere
  RETURN_IF_ERROR(f->Number("min_p", &in.sampling.min_p));
  RETURN_IF_ERROR(f->Number("repetition_penalty", &in.sampling.repetition_penalty));
  out->seeded = f->Find("seed") != nullptr;
  RETURN_IF_ERROR(f->Integer("seed", std::numeric_limits<int64_t>::min(),
                             std::numeric_limits<int64_t>::max(), &in.sampling.seed));
  RETURN_IF_ERROR(ParseStop(f, &in.stop));
  RETURN_IF_ERROR(f->Bool("ignore_eos", &in.ignore_eos));
  if (const Json* ids = f->Find("stop_token_ids")) {
    if (!ids->is_array()) return Bad("stop_token_ids", "an array of token ids", *ids);
    RETURN_IF_ERROR(ParseTokenIds(*ids, "stop_token_ids", &in.stop_tokens));
  }
  RETURN_IF_ERROR(f->Bool("stream", &out->stream));
  if (const Json* options = f->Find("stream_options")) {
    if (!options->is_object()) return Bad("stream_options", "an object", *options);
    if (!out->stream) return Unsupported("stream_options", "allowed only when stream is true");
    Fields inner(*options);
    RETURN_IF_ERROR(inner.Bool("include_usage", &out->include_usage));
    inner.Ignore({"include_obfuscation"});
    RETURN_IF_ERROR(inner.NothingElse());
  }
  const char* one = "one answer is given per request; ask several times";
  RETURN_IF_ERROR(f->Only("n", {1}, one));
  RETURN_IF_ERROR(f->Only("presence_penalty", {0, 0.0}, "use repetition_penalty"));
  RETURN_IF_ERROR(f->Only("frequency_penalty", {0, 0.0}, "use repetition_penalty"));
  RETURN_IF_ERROR(f->Only("logit_bias", {Json::object()}, "logits cannot be biased"));
  f->Ignore({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
             "prompt_cache_retention", "parallel_tool_calls"});
  return absl::OkStatus();
}

absl::Status ParseMaxTokens(Fields* f, absl::string_view name, uint32_t* max_tokens) {
  return f->Integer(name, 1, std::numeric_limits<int32_t>::max(), max_tokens);
}

absl::Status ParsePrompt(Fields* f, GenerateInput* in) {
  const char* expected =
      "a string, an array of token ids, or an array that holds one of these (several prompts are "
      "not supported)";
  const Json* v = f->Find("prompt");
  if (v == nullptr) {
    return WithParam(absl::InvalidArgumentError("prompt is missing"), "prompt");
  }
  if (v->is_array() && v->size() == 1 && !(*v)[0].is_number()) v = &(*v)[0];
  if (v->is_string()) {
    in->prompt = v->get<std::string>();
    return absl::OkStatus();
  }
  if (!v->is_array() || v->empty() || !(*v)[0].is_number()) return Bad("prompt", expected, *v);
  return ParseTokenIds(*v, "prompt", &in->prompt_tokens);
}

// A message's content as one string: templates know no other.
absl::Status FlattenContent(const std::string& where, Json* message) {
  const auto it = message->find("content");
  if (it == message->end()) {
    if (message->contains("tool_calls")) {
      (*message)["content"] = "";
      return absl::OkStatus();
    }
    return WithParam(absl::InvalidArgumentError(absl::StrCat(where, ".content is missing")), where);
  }
  if (it->is_string()) return absl::OkStatus();
  if (it->is_null() && message->contains("tool_calls")) {
    *it = "";
    return absl::OkStatus();
  }
  const std::string name = absl::StrCat(where, ".content");
  if (!it->is_array()) return Bad(name, "a string or an array of text parts", *it);
  std::string text;
  for (const Json& part : *it) {
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || *type != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      return Bad(name,
                 R"(parts {"type": "text", "text": "..."}; images and audio are not supported)",
                 part);
    }
    text += part["text"].get<std::string>();
  }
  *it = text;
  return absl::OkStatus();
}

// OpenAI sends a call's arguments as a JSON text; published templates print them either way, but
// most of them want the object.
void ParseToolArguments(Json* message) {
  const auto calls = message->find("tool_calls");
  if (calls == message->end() || !calls->is_array()) return;
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    const auto arguments = call["function"].find("arguments");
    if (arguments == call["function"].end() || !arguments->is_string()) continue;
    JsonLimits limits;
    limits.max_members = 1024;
    absl::StatusOr<Json> parsed =
        ParseBoundedOrderedJson(arguments->get_ref<const std::string&>(), "arguments", limits);
    if (parsed.ok() && parsed->is_object()) *arguments = *std::move(parsed);
  }
}

absl::Status ParseMessages(Fields* f, const OpenAiLimits& limits, Json* messages) {
  const Json* v = f->Find("messages");
  if (v == nullptr) {
    return WithParam(absl::InvalidArgumentError("messages is missing"), "messages");
  }
  if (!v->is_array() || v->empty() || v->size() > limits.max_messages) {
    return Bad("messages", absl::StrCat("an array of 1..", limits.max_messages, " messages"), *v);
  }
  *messages = *v;
  for (size_t i = 0; i < messages->size(); ++i) {
    Json& message = (*messages)[i];
    const std::string where = absl::StrCat("messages[", i, "]");
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      return Bad(where, "an object with a role", message);
    }
    RETURN_IF_ERROR(FlattenContent(where, &message));
    ParseToolArguments(&message);
  }
  return absl::OkStatus();
}

absl::Status ParseChatLogprobs(Fields* f, OpenAiRequest* out) {
  RETURN_IF_ERROR(f->Bool("logprobs", &out->logprobs));
  RETURN_IF_ERROR(f->Integer("top_logprobs", 0, 20, &out->input.sampling.logprobs));
  if (out->input.sampling.logprobs > 0 && !out->logprobs) {
    return Unsupported("top_logprobs", "allowed only when logprobs is true");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WithParam(absl::Status status, absl::string_view param) {
  status.SetPayload(kParamUrl, absl::Cord(param));
  return status;
}

std::string ParamOf(const absl::Status& status) {
  const auto param = status.GetPayload(kParamUrl);
  return param ? std::string(*param) : "";
}

absl::StatusOr<OpenAiRequest> ParseCompletionRequest(absl::string_view body,
                                                     const OpenAiLimits& limits) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body, limits));
  OpenAiRequest out;
  Fields f(json);
  RETURN_IF_ERROR(ParseCommon(&f, &out));
  RETURN_IF_ERROR(ParsePrompt(&f, &out.input));
  out.input.max_tokens = kCompletionMaxTokens;
  RETURN_IF_ERROR(ParseMaxTokens(&f, "max_tokens", &out.input.max_tokens));
  out.logprobs = f.Find("logprobs") != nullptr;
  RETURN_IF_ERROR(f.Integer("logprobs", 0, 20, &out.input.sampling.logprobs));
  RETURN_IF_ERROR(f.Only("echo", {false}, "the prompt is not sent back"));
  RETURN_IF_ERROR(f.Only("best_of", {1}, "one answer is given per request"));
  RETURN_IF_ERROR(f.Only("suffix", {""}, "text cannot be inserted before another"));
  RETURN_IF_ERROR(f.NothingElse());
  return out;
}

absl::StatusOr<OpenAiRequest> ParseChatRequest(absl::string_view body, const OpenAiLimits& limits) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body, limits));
  OpenAiRequest out;
  out.chat = true;
  Fields f(json);
  RETURN_IF_ERROR(ParseCommon(&f, &out));
  RETURN_IF_ERROR(ParseMessages(&f, limits, &out.messages));
  RETURN_IF_ERROR(ParseMaxTokens(&f, "max_tokens", &out.input.max_tokens));
  RETURN_IF_ERROR(ParseMaxTokens(&f, "max_completion_tokens", &out.input.max_tokens));
  RETURN_IF_ERROR(ParseChatLogprobs(&f, &out));
  const char* tools = "calls of tools are not read out of answers";
  RETURN_IF_ERROR(f.Only("tools", {Json::array()}, tools));
  RETURN_IF_ERROR(f.Only("functions", {Json::array()}, tools));
  RETURN_IF_ERROR(f.Only("tool_choice", {"none", "auto"}, tools));
  RETURN_IF_ERROR(f.Only("function_call", {"none", "auto"}, tools));
  RETURN_IF_ERROR(f.Only("response_format", {Json{{"type", "text"}}}, "only text is generated"));
  RETURN_IF_ERROR(f.Only("modalities", {Json::array({"text"})}, "only text is generated"));
  out.template_variables = Json::object();
  if (const Json* variables = f.Find("chat_template_kwargs")) {
    if (!variables->is_object()) return Bad("chat_template_kwargs", "an object", *variables);
    for (absl::string_view reserved : kReservedVariables) {
      if (variables->contains(std::string(reserved))) {
        return Unsupported("chat_template_kwargs", absl::StrCat(reserved, " cannot be set"));
      }
    }
    out.template_variables = *variables;
  }
  f.Ignore({"reasoning_effort", "verbosity", "prediction"});
  RETURN_IF_ERROR(f.NothingElse());
  return out;
}

}  // namespace oscarkv::gateway
