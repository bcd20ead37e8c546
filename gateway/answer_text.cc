#include "gateway/answer_text.h"

#include <algorithm>
#include <utility>

namespace oscarkv::gateway {

AnswerText::AnswerText(const Tokenizer* tokenizer, std::vector<std::string> stop,
                       std::vector<int32_t> stop_tokens)
    : decoder_(tokenizer), matcher_(std::move(stop)), stop_tokens_(std::move(stop_tokens)) {
  std::sort(stop_tokens_.begin(), stop_tokens_.end());
}

bool AnswerText::IsStopToken(int32_t token) const {
  return std::binary_search(stop_tokens_.begin(), stop_tokens_.end(), token);
}

std::string AnswerText::Push(int32_t token) {
  if (IsStopToken(token)) return "";
  return matcher_.Push(decoder_.Push(token));
}

std::string AnswerText::Finish() {
  if (stopped()) return "";
  std::string text = matcher_.Push(decoder_.Finish());
  return text + matcher_.Finish();
}

}  // namespace oscarkv::gateway
