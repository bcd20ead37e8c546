// From an answer's tokens to the text that the client gets: whole characters only, stop tokens
// silent, stop strings cut off.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gateway/stop_matcher.h"
#include "model/tokenizer.h"

namespace oscarkv::gateway {

// One thread at a time.
class AnswerText {
 public:
  // stop_tokens: ids that have no text, wherever they appear. The tokenizer outlives this.
  AnswerText(const Tokenizer* tokenizer, std::vector<std::string> stop,
             std::vector<int32_t> stop_tokens);

  // The text that became certain with this token; empty once a stop string was found.
  std::string Push(int32_t token);
  // The end of the answer: what was held back.
  std::string Finish();
  // A stop string was found: the answer ends here.
  bool stopped() const { return matcher_.matched(); }
  bool IsStopToken(int32_t token) const;

 private:
  StreamDecoder decoder_;
  StopMatcher matcher_;
  std::vector<int32_t> stop_tokens_;  // sorted
};

}  // namespace oscarkv::gateway
