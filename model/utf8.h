// UTF-8: strict decoding, and replacement of what is not UTF-8.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace oscarkv {

struct Utf8Char {
  enum class State { kValid, kInvalid, kTruncated };  // truncated: a longer text may be valid
  char32_t code;                                      // U+FFFD unless valid
  int bytes;  // 1..4: of the character or, unless valid, of its longest valid beginning
  State state;
};

// The first character of a text that is not empty. Overlong forms, surrogates and code points
// beyond U+10FFFF are invalid.
Utf8Char DecodeUtf8(absl::string_view text);

// The offset of the first byte that is not UTF-8, or npos.
size_t FindInvalidUtf8(absl::string_view text);

void AppendUtf8(char32_t code, std::string* out);

// The text with U+FFFD in place of each maximal invalid or truncated sequence (the Unicode
// standard's recommended practice).
std::string ReplaceInvalidUtf8(absl::string_view text);

// How many bytes at the end (0..3) begin a character that following bytes may complete.
size_t TruncatedUtf8Tail(absl::string_view text);

}  // namespace oscarkv
