// From a template's text to tokens; white space around tags is dealt with here, as Jinja does it
// with trim_blocks and lstrip_blocks.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv::jinja {

enum class TokenKind {
  kText,         // outside of tags
  kOutputBegin,  // {{
  kOutputEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kInteger,
  kFloat,
  kString,    // unescaped
  kOperator,  // and brackets
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// kInvalidArgument names the line.
absl::StatusOr<std::vector<Token>> Lex(absl::string_view source);

}  // namespace oscarkv::jinja
