// When a refused request may be sent again: with the status that refuses it, for HTTP's
// Retry-After.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace oscarkv::gateway {

inline constexpr char kRetryHint[] = "oscarkv/retry-after-s";

// `seconds` is rounded up; at least 1.
inline absl::Status WithRetryHint(absl::Status status, double seconds) {
  const double whole = std::clamp(std::ceil(seconds), 1.0, 86400.0);
  status.SetPayload(kRetryHint, absl::Cord(absl::StrCat(static_cast<int64_t>(whole))));
  return status;
}

// 1 for a status without a hint.
inline int64_t RetryHintSeconds(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryHint);
  int64_t seconds = 1;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &seconds)) return 1;
  return seconds;
}

}  // namespace oscarkv::gateway
