// Regular expressions of tokenizer.json: written for Oniguruma (Ruby syntax), run by PCRE2.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

// The same expression for PCRE2 with UTF, UCP and MULTILINE. The two engines disagree on a few
// things: the members of \s, \w and \d, \v, \h, \uHHHH, nested classes, inline options. What can be
// rewritten is; what cannot is refused by name (kUnimplemented) rather than run with another
// meaning.
absl::StatusOr<std::string> TranslatePattern(absl::string_view pattern);

}  // namespace oscarkv
