// The two character classes that tokenizer files mean by \s and \w.
#pragma once

namespace oscarkv {

bool IsUnicodeWhiteSpace(char32_t code);  // the White_Space property
bool IsUnicodeWordChar(char32_t code);    // Alphabetic, marks, decimal digits, connectors, joiners

}  // namespace oscarkv
