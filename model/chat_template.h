// A chat's messages to the prompt that the model was trained on, by the template of its folder.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "model/jinja/template.h"

namespace oscarkv {

// Immutable: thread-safe.
class ChatTemplate {
 public:
  // chat_template.jinja of the folder, else chat_template of its tokenizer_config.json, of several
  // the one named "default". kNotFound: the folder has none; kUnimplemented: one outside of the
  // subset of Jinja (model/jinja/template.h); kInvalidArgument: a broken one.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& model_dir);

  // Sees `messages`, add_generation_prompt = true, the special tokens of tokenizer_config.json
  // (bos_token, eos_token, ...) and `variables` (which may say the first two anew).
  // kInvalidArgument: messages that the template refuses.
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& messages,
                                     const nlohmann::ordered_json& variables) const;

 private:
  ChatTemplate(std::unique_ptr<jinja::Template> parsed, jinja::Dict tokens)
      : template_(std::move(parsed)), tokens_(std::move(tokens)) {}

  const std::unique_ptr<jinja::Template> template_;
  const jinja::Dict tokens_;
};

}  // namespace oscarkv
