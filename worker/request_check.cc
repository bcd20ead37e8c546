#include "worker/request_check.h"

#include "absl/strings/str_cat.h"

namespace oscarkv::worker {

absl::Status CheckTokens(absl::Span<const int32_t> tokens, int vocab_size, int max_tokens) {
  if (tokens.empty())
    return absl::InvalidArgumentError("tokens: empty; a request has at least one");
  if (tokens.size() > static_cast<size_t>(max_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens: ", tokens.size(), " of them; the model's context allows ", max_tokens, " here"));
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokens[", i, "]: ", tokens[i], " is outside the vocabulary (0..", vocab_size - 1, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckName(absl::string_view field, absl::string_view name) {
  if (name.size() <= kMaxNameBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", name.size(), " bytes; at most ", kMaxNameBytes, " are allowed"));
}

}  // namespace oscarkv::worker
