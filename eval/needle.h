// Retrieval prompts: numbers hidden in a long text, in the form that the reference model was
// trained on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

struct Needle {
  std::string word;    // "basalt"
  std::string number;  // "1234567"
};

struct NeedleText {
  std::string text;             // instruction and book excerpt with the hidden sentences
  std::vector<Needle> needles;  // in order of their places
};

// Counts the tokens of a text.
using TokenCounter = std::function<absl::StatusOr<size_t>(const std::string&)>;

// Hides `num_needles` numbers at seeded places between sentences of an excerpt of `book` such that
// text and question come to about `tokens` tokens (at most that many). kInvalidArgument when the
// book is too short.
absl::StatusOr<NeedleText> BuildNeedleText(absl::string_view book, size_t tokens, int num_needles,
                                           uint64_t seed, const TokenCounter& count);

// `text` with the question for one of its words; the model continues with " <number>".
std::string NeedlePrompt(const NeedleText& text, const Needle& needle);

// Copying: a list "word: number" of `pairs` lines, an excerpt of `book`, and the list once more
// from its beginning; needles are the lines in order. To be read by CopyPrompt. Errors as above.
absl::StatusOr<NeedleText> BuildCopyText(absl::string_view book, size_t tokens, int pairs,
                                         uint64_t seed, const TokenCounter& count);
// `text` with the lines of the second list before `line`, and that one's word; the model continues
// with " <number>".
std::string CopyPrompt(const NeedleText& text, int line);

// True when the answer begins with the number.
bool NeedleAnswered(const Needle& needle, absl::string_view answer);

}  // namespace oscarkv
