#include "gateway/validate.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/utf8.h"

namespace oscarkv::gateway {
namespace {

// Names are put into logs and metrics of several processes: printable ASCII only.
absl::Status ValidateName(absl::string_view field, absl::string_view name, size_t max_bytes) {
  const bool printable =
      std::all_of(name.begin(), name.end(), [](char c) { return absl::ascii_isgraph(c); });
  if (name.size() <= max_bytes && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " \"", absl::CHexEscape(name.substr(0, 2 * max_bytes)), "\" (", name.size(),
      " bytes): allowed are up to ", max_bytes, " printable ASCII characters without spaces"));
}

absl::Status ValidateTokenIds(absl::string_view field, const std::vector<int32_t>& ids,
                              uint32_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, "[", i, "] is ", ids[i], ": allowed are 0..", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateStop(const GenerateInput& input, const RequestLimits& limits,
                          const ModelLimits& model) {
  if (input.stop.size() > limits.max_stop_strings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stop has ", input.stop.size(), " strings: allowed are up to ", limits.max_stop_strings));
  }
  for (size_t i = 0; i < input.stop.size(); ++i) {
    if (input.stop[i].empty() || input.stop[i].size() > limits.max_stop_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] has ", input.stop[i].size(),
                                                     " bytes: allowed are 1..",
                                                     limits.max_stop_bytes));
    }
    RETURN_IF_ERROR(ValidateUtf8(absl::StrCat("stop[", i, "]"), input.stop[i]));
  }
  if (input.stop_tokens.size() > limits.max_stop_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("stop_tokens has ", input.stop_tokens.size(),
                                                   " ids: allowed are up to ",
                                                   limits.max_stop_tokens));
  }
  return ValidateTokenIds("stop_tokens", input.stop_tokens, model.vocab_size);
}

absl::Status TooLong(absl::string_view what, size_t value, const ModelLimits& model) {
  return absl::InvalidArgumentError(absl::StrCat(
      what, " ", value, ": allowed is less than the model's context of ", model.max_context));
}

}  // namespace

absl::Status ValidateRequest(const GenerateInput& input, const RequestLimits& limits,
                             const ModelLimits& model) {
  RETURN_IF_ERROR(ValidateName("request_id", input.request_id, limits.max_request_id_bytes));
  RETURN_IF_ERROR(ValidateName("tenant", input.tenant, limits.max_tenant_bytes));
  if (input.prompt.empty() && input.prompt_tokens.empty()) {
    return absl::InvalidArgumentError(
        "prompt is empty: give a prompt of at least one character, or prompt_tokens");
  }
  if (!input.prompt.empty() && !input.prompt_tokens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt (", input.prompt.size(), " bytes) and prompt_tokens (",
                     input.prompt_tokens.size(), " ids) are both set: exactly one is allowed"));
  }
  if (input.prompt_tokens.size() >= model.max_context) {
    return TooLong("number of prompt_tokens", input.prompt_tokens.size(), model);
  }
  RETURN_IF_ERROR(ValidateTokenIds("prompt_tokens", input.prompt_tokens, model.vocab_size));
  if (input.max_tokens >= model.max_context) return TooLong("max_tokens", input.max_tokens, model);
  if (input.resume_tokens.size() >= model.max_context) {
    return TooLong("number of resume_tokens", input.resume_tokens.size(), model);
  }
  RETURN_IF_ERROR(ValidateTokenIds("resume_tokens", input.resume_tokens, model.vocab_size));
  RETURN_IF_ERROR(ValidateSampling(input.sampling));
  return ValidateStop(input, limits, model);
}

absl::StatusOr<uint32_t> MaxAnswerTokens(uint32_t asked, size_t prompt_tokens,
                                         const RequestLimits& limits, const ModelLimits& model) {
  if (prompt_tokens == 0) return absl::InvalidArgumentError("prompt has no tokens");
  if (prompt_tokens >= model.max_context) {
    return TooLong("number of the prompt's tokens", prompt_tokens, model);
  }
  const uint32_t room = model.max_context - static_cast<uint32_t>(prompt_tokens);
  if (asked > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens ", asked, ": the prompt has ", prompt_tokens,
                     " tokens and the model's context ", model.max_context, ", allowed are 1..",
                     room, " (or 0 for up to ", limits.default_max_tokens, ")"));
  }
  return asked > 0 ? asked : std::min(limits.default_max_tokens, room);
}

absl::Status SetTenant(const auth::Identity& caller, GenerateInput* input) {
  if (caller.everyone) return absl::OkStatus();
  if (input->tenant.empty()) input->tenant = caller.tenant;
  if (input->tenant == caller.tenant) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("'", caller.name, "' may not act for tenant \"",
                                                  absl::CHexEscape(input->tenant.substr(0, 64)),
                                                  "\": leave it empty"));
}

absl::Status ValidateUtf8(absl::string_view field, absl::string_view text) {
  const size_t bad = FindInvalidUtf8(text);
  if (bad == absl::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is not UTF-8 at byte ", bad, " (0x",
      absl::Hex(static_cast<uint8_t>(text[bad]), absl::kZeroPad2), "): allowed is valid UTF-8"));
}

}  // namespace oscarkv::gateway
