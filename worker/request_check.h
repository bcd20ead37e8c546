// What prefill and attention workers demand of a request before they take it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/model_config.h"

namespace oscarkv::worker {

inline constexpr size_t kMaxNameBytes = 256;

// kInvalidArgument: no token, an id outside the vocabulary, more than `max_tokens`, a name that
// is too long.
absl::Status CheckTokens(absl::Span<const int32_t> tokens, int vocab_size, int max_tokens);
// `field`: request_id or tenant.
absl::Status CheckName(absl::string_view field, absl::string_view name);

}  // namespace oscarkv::worker
