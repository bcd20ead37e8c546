// The tokens of a tokenizer.json that are looked for in the text itself, before anything else cuts
// it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

struct AddedToken {
  int32_t id = -1;
  std::string content = {};
  bool special = false;      // left out of decoded text by default
  bool normalized = false;   // looked for in the normalised text, in its own normalised form
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
};

// The "added_tokens" list (absent: empty).
absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const nlohmann::json& tokenizer);

// Finds added tokens: leftmost, and the longest of those that begin there. Immutable once filled:
// thread-safe.
class AddedTokenMatcher {
 public:
  struct Part {
    absl::string_view text;
    int32_t id;  // of the added token, or -1: plain text
  };

  // `pattern`: the token's content, normalised where it is to be. The first of equal patterns wins.
  void Add(absl::string_view pattern, const AddedToken& token);
  // Appends the parts of `text`, which is UTF-8, in order. Plain parts are not empty.
  void Split(absl::string_view text, std::vector<Part>* parts) const;

 private:
  // The node of a trie over bytes; 0 is the root.
  struct Node {
    absl::flat_hash_map<char, int32_t> children;
    int32_t token = -1;  // index into tokens_
  };
  // The longest pattern at the beginning of `text`: its token and its length; {-1, 0} for none.
  std::pair<int32_t, size_t> LongestAt(absl::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
};

}  // namespace oscarkv
