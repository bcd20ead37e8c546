// Cuts normalised text into the words that BPE is applied to.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/regex_splitter.h"

namespace oscarkv {

// Immutable after parsing: thread-safe.
class PreTokenizer {
 public:
  // Per-thread memory of Split, kept between calls.
  struct Scratch {
    RegexSplitter::Scratch regex;
    std::vector<absl::string_view> words, cut;
    std::deque<std::string> prefixed;  // words that got a space in front
  };

  // The "pre_tokenizer" of a tokenizer.json: ByteLevel, or a Sequence of Splits by regular
  // expression (behavior Isolated) that ends with ByteLevel. Anything else: kUnimplemented, named.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Parse(const nlohmann::json& tokenizer);

  // Leaves the words of `text` in scratch->words, as views into `text` or into scratch->prefixed,
  // valid until the next call.
  absl::Status Split(absl::string_view text, Scratch* scratch) const;

 private:
  PreTokenizer() = default;
  absl::Status AddStep(const nlohmann::json& step, bool last);
  absl::Status AddPattern(absl::string_view pattern);
  absl::Status AddByteLevel(const nlohmann::json& step);
  absl::Status CutWords(size_t first, size_t end, Scratch* scratch) const;

  std::vector<std::unique_ptr<RegexSplitter>> splitters_;
  size_t before_prefix_ = 0;  // how many of them run before the prefix space is added
  bool add_prefix_space_ = false;
};

}  // namespace oscarkv
