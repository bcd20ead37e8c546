#include "gateway/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace oscarkv::gateway {

StopMatcher::StopMatcher(std::vector<std::string> stop) {
  for (std::string& text : stop) {
    if (text.empty()) continue;
    std::vector<size_t> fallback(text.size(), 0);
    for (size_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = fallback[border - 1];
      if (text[i] == text[border]) ++border;
      fallback[i] = border;
    }
    patterns_.push_back({std::move(text), std::move(fallback)});
  }
}

void StopMatcher::Advance(Pattern& p, char c) {
  // No reset after a full match is needed: the first one ends the stream.
  while (p.state > 0 && p.text[p.state] != c) p.state = p.fallback[p.state - 1];
  if (p.text[p.state] == c) ++p.state;
}

std::string StopMatcher::Push(absl::string_view text) {
  if (matched_) return "";
  if (patterns_.empty()) return std::string(text);
  std::string out = std::exchange(held_, "");
  size_t hold = 0;
  for (char c : text) {
    out.push_back(c);
    hold = 0;
    size_t complete = 0;
    for (Pattern& p : patterns_) {
      Advance(p, c);
      hold = std::max(hold, p.state);
      if (p.state == p.text.size()) complete = std::max(complete, p.state);
    }
    if (complete > 0) {
      matched_ = true;
      out.resize(out.size() - complete);
      return out;
    }
  }
  if (text.empty()) hold = out.size();  // nothing new: all of it is still held
  held_ = out.substr(out.size() - hold);
  out.resize(out.size() - hold);
  return out;
}

std::string StopMatcher::Finish() {
  return std::exchange(held_, "");
}

}  // namespace oscarkv::gateway
