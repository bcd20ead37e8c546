#include "model/added_tokens.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"
#include "model/bpe.h"
#include "model/unicode_classes.h"
#include "model/utf8.h"

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxContentBytes = 1024;  // bounds the look-ahead at every position of a text

absl::StatusOr<bool> Flag(const json& token, absl::string_view key, bool if_absent) {
  const json* value = FindMember(token, key);
  if (value == nullptr) return if_absent;
  if (value->is_boolean()) return value->get<bool>();
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token ", JsonExcerpt(token),
                                                 ": ", key, " is not true or false"));
}

// The last character of a text that is not empty.
char32_t LastChar(absl::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80) --i;
  return DecodeUtf8(text.substr(i)).code;
}

bool EndsWithWord(absl::string_view text) {
  return !text.empty() && IsUnicodeWordChar(LastChar(text));
}
bool StartsWithWord(absl::string_view text) {
  return !text.empty() && IsUnicodeWordChar(DecodeUtf8(text).code);
}
size_t LeadingSpaceBytes(absl::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    const Utf8Char c = DecodeUtf8(text.substr(n));
    if (!IsUnicodeWhiteSpace(c.code)) break;
    n += c.bytes;
  }
  return n;
}
// Where the white space at the end begins, not before `limit`.
size_t TrailingSpaceBegin(absl::string_view text, size_t limit) {
  size_t end = text.size();
  while (end > limit && IsUnicodeWhiteSpace(LastChar(text.substr(0, end)))) {
    do {
      --end;
    } while (end > limit && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80);
  }
  return end;
}

}  // namespace

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const json& tokenizer) {
  std::vector<AddedToken> out;
  const json* list = FindMember(tokenizer, "added_tokens");
  if (list == nullptr) return out;
  if (!list->is_array()) {
    return absl::InvalidArgumentError("tokenizer.json: added_tokens is not a list");
  }
  for (const json& item : *list) {
    const json* content = FindMember(item, "content");
    const json* id = FindMember(item, "id");
    int64_t number = 0;
    if (content == nullptr || !content->is_string() || id == nullptr ||
        !JsonInteger(*id, 0, kMaxVocabulary - 1, &number)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: added token ", JsonExcerpt(item),
                       ": expected content and an id in 0..", kMaxVocabulary - 1));
    }
    AddedToken token{.id = static_cast<int32_t>(number), .content = content->get<std::string>()};
    if (token.content.empty() || token.content.size() > kMaxContentBytes) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token ", number,
                                                     " has a content of ", token.content.size(),
                                                     " bytes, expected 1..", kMaxContentBytes));
    }
    ASSIGN_OR_RETURN(token.special, Flag(item, "special", false));
    ASSIGN_OR_RETURN(token.normalized, Flag(item, "normalized", !token.special));
    ASSIGN_OR_RETURN(token.single_word, Flag(item, "single_word", false));
    ASSIGN_OR_RETURN(token.lstrip, Flag(item, "lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, Flag(item, "rstrip", false));
    out.push_back(std::move(token));
  }
  return out;
}

void AddedTokenMatcher::Add(absl::string_view pattern, const AddedToken& token) {
  if (pattern.empty()) return;  // would match everywhere
  int32_t node = 0;
  for (const char c : pattern) {
    const auto [it, inserted] =
        nodes_[node].children.emplace(c, static_cast<int32_t>(nodes_.size()));
    node = it->second;  // before push_back moves the nodes
    if (inserted) nodes_.emplace_back();
  }
  if (nodes_[node].token >= 0) return;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

std::pair<int32_t, size_t> AddedTokenMatcher::LongestAt(absl::string_view text) const {
  std::pair<int32_t, size_t> best{-1, 0};
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto it = nodes_[node].children.find(text[i]);
    if (it == nodes_[node].children.end()) break;
    node = it->second;
    if (nodes_[node].token >= 0) best = {nodes_[node].token, i + 1};
  }
  return best;
}

void AddedTokenMatcher::Split(absl::string_view text, std::vector<Part>* parts) const {
  bool begins[256] = {};
  for (const auto& [c, child] : nodes_[0].children) begins[static_cast<uint8_t>(c)] = true;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (!begins[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const auto [index, length] = LongestAt(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, end = at + length;
    at = end;  // also behind a match that single_word refuses
    if (token.single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) begin = std::max(done, TrailingSpaceBegin(text.substr(0, begin), done));
    if (token.rstrip) at = end += LeadingSpaceBytes(text.substr(end));
    if (begin > done) parts->push_back({text.substr(done, begin - done), -1});
    parts->push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) parts->push_back({text.substr(done), -1});
}

}  // namespace oscarkv
