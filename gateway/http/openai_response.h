// Answers in OpenAI's JSON: whole, as chunks of a stream, and errors.
//
// Beyond OpenAI's fields every answer's last object has "oscarkv": what its KV cache took, in bf16
// and as stored, how it travelled, and times.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/http/http_server.h"
#include "gateway/types.h"
#include "model/tokenizer.h"

namespace oscarkv::gateway {

// What is the same in all objects of an answer.
struct AnswerIdentity {
  bool chat = false;
  bool logprobs = false;
  bool include_usage = false;  // of a stream
  std::string request_id;
  std::string model;
  int64_t created = 0;  // Unix seconds
};

// One thread at a time.
class OpenAiAnswer {
 public:
  // The tokenizer outlives it.
  OpenAiAnswer(AnswerIdentity identity, const Tokenizer* tokenizer);

  // The server-sent events of a part of the answer; the last part brings finish reason, usage and
  // [DONE].
  std::string Events(const GenerateOutput& output);
  // The event that ends a stream which failed after it began; no [DONE] follows.
  static std::string ErrorEvent(const absl::Status& status);

  // The whole answer, from its parts.
  void Add(const GenerateOutput& output);
  std::string Whole() const;

  const AnswerIdentity& identity() const { return identity_; }
  void set_request_id(const std::string& id) { identity_.request_id = id; }

 private:
  nlohmann::ordered_json Base(const char* object) const;
  nlohmann::ordered_json Logprobs(const std::vector<SampledToken>& tokens);
  nlohmann::ordered_json CompletionLogprobs(const std::vector<SampledToken>& tokens);
  nlohmann::ordered_json ChatLogprobs(const std::vector<SampledToken>& tokens) const;

  AnswerIdentity identity_;
  const Tokenizer* const tokenizer_;
  bool first_ = true;
  size_t text_offset_ = 0;  // of the next token, in characters
  std::string text_;
  nlohmann::ordered_json logprobs_;
  FinishReason finish_ = FinishReason::kNone;
  Usage usage_;
};

// The status codes of HTTP that stand for ours.
int HttpStatus(const absl::Status& status);
HttpResponse ErrorResponse(const absl::Status& status);
// For what has no status of ours: wrong paths, methods, media types.
HttpResponse ErrorResponse(int http_status, absl::string_view message, absl::string_view code = "");

// JSON text for the wire: whatever is not UTF-8 is replaced.
std::string Dump(const nlohmann::ordered_json& json);

}  // namespace oscarkv::gateway
