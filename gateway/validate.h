// What a request may contain. Every refusal is kInvalidArgument and names the field, its value and
// what is allowed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/auth/identity.h"
#include "gateway/types.h"

namespace oscarkv::gateway {

struct RequestLimits {
  uint32_t default_max_tokens = 256;
  size_t max_stop_strings = 16;
  size_t max_stop_bytes = 256;  // of each
  size_t max_stop_tokens = 64;
  size_t max_request_id_bytes = 128;
  size_t max_tenant_bytes = 64;
};

// What of the model a request is checked against.
struct ModelLimits {
  uint32_t max_context = 0;
  uint32_t vocab_size = 0;
};

// All that can be said before the prompt is tokenised; cheap.
absl::Status ValidateRequest(const GenerateInput& input, const RequestLimits& limits,
                             const ModelLimits& model);

// The answer's most tokens for a prompt of this length. An explicit max_tokens must fit into the
// context behind the prompt; the default gives way to what fits.
absl::StatusOr<uint32_t> MaxAnswerTokens(uint32_t asked, size_t prompt_tokens,
                                         const RequestLimits& limits, const ModelLimits& model);

// The tenant is the caller's, whatever the request says; kPermissionDenied when it names another.
// Without authentication it is what the request says.
absl::Status SetTenant(const auth::Identity& caller, GenerateInput* input);

absl::Status ValidateUtf8(absl::string_view field, absl::string_view text);

}  // namespace oscarkv::gateway
