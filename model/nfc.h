// Unicode normalisation form C.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

// `text` is UTF-8. O(n log n), whatever the text. kInternal only when the library fails (out of
// memory).
absl::StatusOr<std::string> NormalizeNfc(absl::string_view text);

}  // namespace oscarkv
