#include "model/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

// A special token is a text, or an object that holds it.
jinja::Dict SpecialTokens(const json& config) {
  jinja::Dict tokens;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    const json* token = FindMember(config, name);
    if (token != nullptr && token->is_object()) token = FindMember(*token, "content");
    if (token != nullptr && token->is_string()) {
      tokens.emplace_back(name, jinja::Value::Text(token->get<std::string>()));
    }
  }
  return tokens;
}

// The template in tokenizer_config.json; empty without one.
std::string TemplateOf(const json& config) {
  const json* found = FindMember(config, "chat_template");
  if (found == nullptr) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const json& entry : *found) {
    const json* name = FindMember(entry, "name");
    const json* text = FindMember(entry, "template");
    if (name != nullptr && *name == "default" && text != nullptr && text->is_string()) {
      return text->get<std::string>();
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& model_dir) {
  json config;
  const std::string path = absl::StrCat(model_dir, "/tokenizer_config.json");
  absl::StatusOr<std::string> text = ReadTextFile(path, kMaxConfigBytes);
  if (text.ok()) {
    ASSIGN_OR_RETURN(config, ParseBoundedJson(*text, path));
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  std::string where = absl::StrCat(model_dir, "/chat_template.jinja");
  absl::StatusOr<std::string> source = ReadTextFile(where, kMaxTemplateBytes);
  if (absl::IsNotFound(source.status())) {
    source = TemplateOf(config);
    where = absl::StrCat(path, ": chat_template");
    if (source->empty()) {
      return absl::NotFoundError(
          absl::StrCat("the model folder ", model_dir,
                       " has no chat template: neither chat_template.jinja nor chat_template in "
                       "tokenizer_config.json. Use /v1/completions with the prompt's whole text"));
    }
  }
  RETURN_IF_ERROR(source.status());
  absl::StatusOr<std::unique_ptr<jinja::Template>> parsed = jinja::Template::Parse(*source);
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(),
                        absl::StrCat(where, ": ", parsed.status().message()));
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(*std::move(parsed), SpecialTokens(config)));
}

absl::StatusOr<std::string> ChatTemplate::Render(const nlohmann::ordered_json& messages,
                                                 const nlohmann::ordered_json& variables) const {
  // The first of a name is the one that is seen.
  jinja::Dict values;
  for (const auto& [name, value] : variables.items()) {
    ASSIGN_OR_RETURN(jinja::Value converted, jinja::Value::FromJson(value));
    values.emplace_back(name, std::move(converted));
  }
  ASSIGN_OR_RETURN(jinja::Value converted, jinja::Value::FromJson(messages));
  values.emplace_back("messages", std::move(converted));
  values.emplace_back("add_generation_prompt", jinja::Value::Bool(true));
  values.insert(values.end(), tokens_.begin(), tokens_.end());
  absl::StatusOr<std::string> prompt = template_->Render(values);
  if (prompt.ok()) return prompt;
  return absl::Status(prompt.status().code(),
                      absl::StrCat("chat template: ", prompt.status().message()));
}

}  // namespace oscarkv
