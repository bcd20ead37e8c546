// Byte-level BPE spells each byte as a printable character: GPT-2's alphabet.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace oscarkv {

// The character of each byte: printable Latin-1 bytes stand for themselves, the other 68 for U+0100
// onwards, in order.
const std::array<char16_t, 256>& ByteAlphabet();

// The bytes that a token of the vocabulary spells; nullopt when it holds a character outside the
// alphabet (or no UTF-8).
std::optional<std::string> BytesOfSpelling(absl::string_view spelling);

}  // namespace oscarkv
