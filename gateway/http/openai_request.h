// Bodies of /v1/completions and /v1/chat/completions, as OpenAI documents them, to what the
// gateway's core works with. What is not supported and would change the answer is refused; what
// only informs the server is ignored.
//
// Errors are kInvalidArgument, kUnimplemented for what we do not do; ParamOf() says which field.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/types.h"

namespace oscarkv::gateway {

struct OpenAiRequest {
  bool chat = false;
  GenerateInput input;  // of a chat: without the prompt
  std::string model;    // as asked for; empty: whatever is served
  bool stream = false;
  bool include_usage = false;  // in a stream
  bool logprobs = false;
  bool seeded = false;
  // Of a chat: messages with string contents, in the order of the client's keys (templates may
  // print them), and further variables of the template.
  nlohmann::ordered_json messages;
  nlohmann::ordered_json template_variables;
};

struct OpenAiLimits {
  size_t max_body_bytes = 4 << 20;
  size_t max_depth = 64;
  size_t max_messages = 4096;
};

absl::StatusOr<OpenAiRequest> ParseCompletionRequest(absl::string_view body,
                                                     const OpenAiLimits& limits = {});
absl::StatusOr<OpenAiRequest> ParseChatRequest(absl::string_view body,
                                               const OpenAiLimits& limits = {});

// The field that a status is about; empty when it is about none.
std::string ParamOf(const absl::Status& status);
absl::Status WithParam(absl::Status status, absl::string_view param);

}  // namespace oscarkv::gateway
