#include "model/pretokenizer.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"

namespace oscarkv {
namespace {

using nlohmann::json;

// What ByteLevel splits by when use_regex is set: GPT-2's expression.
constexpr absl::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr size_t kMaxSteps = 16;

absl::Status Unsupported(const json& value) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.json: pre_tokenizer ", JsonExcerpt(value), " is not supported"));
}

absl::StatusOr<bool> Flag(const json& step, absl::string_view key, bool if_absent) {
  const json* value = FindMember(step, key);
  if (value == nullptr) return if_absent;
  if (value->is_boolean()) return value->get<bool>();
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: pre_tokenizer.", key, " is ",
                                                 JsonExcerpt(*value), ", expected true or false"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Parse(const json& tokenizer) {
  const json* found = FindMember(tokenizer, "pre_tokenizer");
  if (found == nullptr) return Unsupported(nullptr);
  std::unique_ptr<PreTokenizer> out(new PreTokenizer);
  const json* type = FindMember(*found, "type");
  if (type == nullptr || *type != "Sequence") {
    RETURN_IF_ERROR(out->AddStep(*found, /*last=*/true));
    return out;
  }
  const json* steps = FindMember(*found, "pretokenizers");
  if (steps == nullptr || !steps->is_array() || steps->empty() || steps->size() > kMaxSteps) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.json: pre_tokenizer Sequence needs a list of 1..", kMaxSteps, " pretokenizers"));
  }
  for (size_t i = 0; i < steps->size(); ++i) {
    RETURN_IF_ERROR(out->AddStep((*steps)[i], i + 1 == steps->size()));
  }
  return out;
}

absl::Status PreTokenizer::AddStep(const json& step, bool last) {
  const json* type = FindMember(step, "type");
  if (type != nullptr && *type == "ByteLevel" && last) return AddByteLevel(step);
  if (type == nullptr || *type != "Split" || last) return Unsupported(step);
  const json* behavior = FindMember(step, "behavior");
  if (behavior == nullptr || *behavior != "Isolated") return Unsupported(step);
  // "invert" exchanges matches and gaps; Isolated keeps both alike.
  const json* pattern = FindMember(step, "pattern");
  const json* regex = pattern == nullptr ? nullptr : FindMember(*pattern, "Regex");
  if (regex == nullptr || !regex->is_string()) return Unsupported(step);
  return AddPattern(regex->get_ref<const std::string&>());
}

absl::Status PreTokenizer::AddByteLevel(const json& step) {
  before_prefix_ = splitters_.size();
  ASSIGN_OR_RETURN(add_prefix_space_, Flag(step, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, Flag(step, "use_regex", true));
  return use_regex ? AddPattern(kGpt2Pattern) : absl::OkStatus();
}

absl::Status PreTokenizer::AddPattern(absl::string_view pattern) {
  absl::StatusOr<std::unique_ptr<RegexSplitter>> splitter = RegexSplitter::Compile(pattern);
  if (!splitter.ok()) {
    return absl::Status(splitter.status().code(), absl::StrCat("tokenizer.json: pre_tokenizer: ",
                                                               splitter.status().message()));
  }
  splitters_.push_back(*std::move(splitter));
  return absl::OkStatus();
}

absl::Status PreTokenizer::CutWords(size_t first, size_t end, Scratch* scratch) const {
  for (size_t i = first; i < end; ++i) {
    scratch->cut.clear();
    for (const absl::string_view word : scratch->words) {
      RETURN_IF_ERROR(splitters_[i]->Split(word, &scratch->regex, &scratch->cut));
    }
    std::swap(scratch->words, scratch->cut);
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(absl::string_view text, Scratch* scratch) const {
  scratch->words.clear();
  scratch->prefixed.clear();
  if (text.empty()) return absl::OkStatus();
  scratch->words.push_back(text);
  RETURN_IF_ERROR(CutWords(0, before_prefix_, scratch));
  if (add_prefix_space_) {
    for (absl::string_view& word : scratch->words) {
      if (absl::StartsWith(word, " ")) continue;
      word = scratch->prefixed.emplace_back(absl::StrCat(" ", word));
    }
  }
  return CutWords(before_prefix_, splitters_.size(), scratch);
}

}  // namespace oscarkv
