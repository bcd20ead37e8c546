#include "gateway/http/openai_response.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gateway/http/openai_request.h"
#include "gateway/retry_hint.h"
#include "model/utf8.h"

namespace oscarkv::gateway {
namespace {

using Json = nlohmann::ordered_json;

const char* FinishName(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStopToken:
    case FinishReason::kStopString:
      return "stop";
    case FinishReason::kLength:
    case FinishReason::kContext:
      return "length";
    case FinishReason::kNone:
      break;
  }
  return nullptr;
}

Json FinishJson(FinishReason finish) {
  const char* name = FinishName(finish);
  return name == nullptr ? Json(nullptr) : Json(name);
}

double Milliseconds(Duration d) {
  return std::round(std::chrono::duration<double, std::micro>(d).count()) / 1000;
}

Json UsageJson(const Usage& u) {
  return {{"prompt_tokens", u.prompt_tokens},
          {"completion_tokens", u.generated_tokens},
          {"total_tokens", u.prompt_tokens + u.generated_tokens},
          {"prompt_tokens_details", {{"cached_tokens", u.cached_tokens}}}};
}

Json DetailsJson(const Usage& u) {
  return {{"ttft_ms", Milliseconds(u.ttft)},
          {"tpot_ms", Milliseconds(u.tpot)},
          {"kv_bytes_bf16", u.kv_bytes_bf16},
          {"kv_bytes_stored", u.kv_bytes_stored},
          {"bytes_put", u.bytes_put},
          {"bytes_got", u.bytes_got},
          {"lanes", u.lanes},
          {"prefill_worker", u.prefill_worker},
          {"attention_worker", u.attention_worker},
          {"resumes", u.resumes},
          {"recomputed_tokens", u.recomputed_tokens}};
}

// -inf has no JSON: OpenAI writes -9999 for what is next to impossible.
double JsonLogprob(float logprob) {
  return std::isfinite(logprob) ? logprob : -9999.0;
}

std::string Event(const Json& json) {
  return absl::StrCat("data: ", Dump(json), "\n\n");
}

size_t Characters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

struct ErrorKind {
  int status;
  const char* type;
};

ErrorKind KindOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return {400, "invalid_request_error"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "authentication_error"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "permission_error"};
    case absl::StatusCode::kNotFound:
      return {404, "invalid_request_error"};
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return {409, "invalid_request_error"};
    case absl::StatusCode::kResourceExhausted:
      return {429, "rate_limit_error"};
    case absl::StatusCode::kCancelled:
      return {499, "cancelled"};
    case absl::StatusCode::kUnimplemented:
      return {501, "invalid_request_error"};
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kFailedPrecondition:
      return {503, "server_error"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "server_error"};
    default:
      return {500, "server_error"};
  }
}

Json ErrorJson(absl::string_view message, const char* type, absl::string_view param,
               absl::string_view code) {
  return {{"error",
           {{"message", std::string(message)},
            {"type", type},
            {"param", param.empty() ? Json(nullptr) : Json(std::string(param))},
            {"code", code.empty() ? Json(nullptr) : Json(std::string(code))}}}};
}

Json ErrorJson(const absl::Status& status) {
  const std::string code = absl::IsResourceExhausted(status)
                               ? "rate_limit_exceeded"  // OpenAI's name for it
                               : absl::AsciiStrToLower(absl::StatusCodeToString(status.code()));
  return ErrorJson(std::string(status.message()), KindOf(status.code()).type, ParamOf(status),
                   code);
}

}  // namespace

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

int HttpStatus(const absl::Status& status) {
  return KindOf(status.code()).status;
}

HttpResponse ErrorResponse(const absl::Status& status) {
  HttpResponse response;
  response.status = HttpStatus(status);
  response.body = absl::StrCat(Dump(ErrorJson(status)), "\n");
  if (response.status == 429 || response.status == 503) {
    response.headers.emplace_back("Retry-After", absl::StrCat(RetryHintSeconds(status)));
  }
  if (response.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse ErrorResponse(int http_status, absl::string_view message, absl::string_view code) {
  HttpResponse response;
  response.status = http_status;
  response.body = absl::StrCat(
      Dump(ErrorJson(message, http_status < 500 ? "invalid_request_error" : "server_error", "",
                     code)),
      "\n");
  return response;
}

OpenAiAnswer::OpenAiAnswer(AnswerIdentity identity, const Tokenizer* tokenizer)
    : identity_(std::move(identity)), tokenizer_(tokenizer) {}

Json OpenAiAnswer::Base(const char* object) const {
  return {{"id", absl::StrCat(identity_.chat ? "chatcmpl-" : "cmpl-", identity_.request_id)},
          {"object", object},
          {"created", identity_.created},
          {"model", identity_.model}};
}

Json OpenAiAnswer::ChatLogprobs(const std::vector<SampledToken>& tokens) const {
  const auto entry = [this](int32_t id, float logprob) {
    const std::string bytes = tokenizer_->TokenBytes(id, /*skip_special=*/false);
    Json numbers = Json::array();
    for (const char c : bytes) numbers.push_back(static_cast<uint8_t>(c));
    return Json{{"token", ReplaceInvalidUtf8(bytes)},
                {"logprob", JsonLogprob(logprob)},
                {"bytes", std::move(numbers)}};
  };
  Json content = Json::array();
  for (const SampledToken& token : tokens) {
    Json one = entry(token.token, token.logprob);
    one["top_logprobs"] = Json::array();
    for (const TokenLogprob& top : token.top) {
      one["top_logprobs"].push_back(entry(top.token, top.logprob));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json OpenAiAnswer::CompletionLogprobs(const std::vector<SampledToken>& tokens) {
  Json out = {{"tokens", Json::array()},
              {"token_logprobs", Json::array()},
              {"top_logprobs", Json::array()},
              {"text_offset", Json::array()}};
  const auto text = [this](int32_t id) {
    return ReplaceInvalidUtf8(tokenizer_->TokenBytes(id, /*skip_special=*/false));
  };
  for (const SampledToken& token : tokens) {
    out["tokens"].push_back(text(token.token));
    out["token_logprobs"].push_back(JsonLogprob(token.logprob));
    Json top = Json::object();
    for (const TokenLogprob& t : token.top) top[text(t.token)] = JsonLogprob(t.logprob);
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(text_offset_);
    text_offset_ += Characters(text(token.token));
  }
  return out;
}

Json OpenAiAnswer::Logprobs(const std::vector<SampledToken>& tokens) {
  if (!identity_.logprobs) return nullptr;
  return identity_.chat ? ChatLogprobs(tokens) : CompletionLogprobs(tokens);
}

std::string OpenAiAnswer::Events(const GenerateOutput& output) {
  std::string events;
  Json chunk = Base(identity_.chat ? "chat.completion.chunk" : "text_completion");
  const auto add = [&](Json choice) {
    chunk["choices"] = Json::array({std::move(choice)});
    if (identity_.include_usage) chunk["usage"] = nullptr;
    events += Event(chunk);
  };
  const bool last = output.finish != FinishReason::kNone;
  if (identity_.chat) {
    if (std::exchange(first_, false)) {
      add({{"index", 0},
           {"delta", {{"role", "assistant"}, {"content", ""}}},
           {"logprobs", nullptr},
           {"finish_reason", nullptr}});
    }
    if (!output.text.empty() || (identity_.logprobs && !output.tokens.empty())) {
      add({{"index", 0},
           {"delta", {{"content", output.text}}},
           {"logprobs", Logprobs(output.tokens)},
           {"finish_reason", nullptr}});
    }
    if (last) {
      if (output.usage) chunk["oscarkv"] = DetailsJson(*output.usage);
      add({{"index", 0},
           {"delta", Json::object()},
           {"logprobs", nullptr},
           {"finish_reason", FinishJson(output.finish)}});
    }
  } else if (last || !output.text.empty() || identity_.logprobs) {
    if (last && output.usage) chunk["oscarkv"] = DetailsJson(*output.usage);
    add({{"index", 0},
         {"text", output.text},
         {"logprobs", Logprobs(output.tokens)},
         {"finish_reason", FinishJson(output.finish)}});
  }
  if (!last) return events;
  if (identity_.include_usage && output.usage) {
    chunk.erase("oscarkv");
    chunk["choices"] = Json::array();
    chunk["usage"] = UsageJson(*output.usage);
    events += Event(chunk);
  }
  return absl::StrCat(events, "data: [DONE]\n\n");
}

std::string OpenAiAnswer::ErrorEvent(const absl::Status& status) {
  return Event(ErrorJson(status));
}

void OpenAiAnswer::Add(const GenerateOutput& output) {
  text_ += output.text;
  if (output.finish != FinishReason::kNone) finish_ = output.finish;
  if (output.usage) usage_ = *output.usage;
  if (!identity_.logprobs) return;
  Json more = Logprobs(output.tokens);
  if (logprobs_.is_null()) {
    logprobs_ = std::move(more);
    return;
  }
  for (auto& [key, value] : more.items()) {
    if (!value.is_array()) continue;
    for (Json& entry : value) logprobs_[key].push_back(std::move(entry));
  }
}

std::string OpenAiAnswer::Whole() const {
  Json out = Base(identity_.chat ? "chat.completion" : "text_completion");
  Json choice = {{"index", 0}};
  if (identity_.chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text_}, {"refusal", nullptr}};
  } else {
    choice["text"] = text_;
  }
  choice["logprobs"] = logprobs_;
  choice["finish_reason"] = FinishJson(finish_);
  out["choices"] = Json::array({std::move(choice)});
  out["usage"] = UsageJson(usage_);
  out["oscarkv"] = DetailsJson(usage_);
  return Dump(out);
}

}  // namespace oscarkv::gateway
