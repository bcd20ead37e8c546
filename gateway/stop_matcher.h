// Finds stop strings in a stream of text and holds back what may yet become one.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace oscarkv::gateway {

// The answer ends before the stop string that is complete first; of several that are complete at
// the same byte, before the longest. The result does not depend on how the text is cut into pieces.
// Time is linear in the text per stop string (Knuth-Morris-Pratt). One thread at a time.
class StopMatcher {
 public:
  // Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stop);

  // The text that is now certain to belong to the answer. After a match: nothing, ever.
  std::string Push(absl::string_view text);
  // The end of the text: what was held back belongs to the answer.
  std::string Finish();
  bool matched() const { return matched_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> fallback;  // KMP: length of the longest proper border of text[0..i]
    size_t state = 0;              // how many bytes of `text` the stream ends with
  };
  static void Advance(Pattern& pattern, char c);

  std::vector<Pattern> patterns_;
  std::string held_;  // the stream's tail that is a beginning of some stop string
  bool matched_ = false;
};

}  // namespace oscarkv::gateway
