#include "eval/text_stream.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "eval/needle.h"

namespace oscarkv {
namespace {

// splitmix64: the same choices everywhere.
uint64_t Next(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// `count` of 0..n-1, ascending.
std::vector<int> Choose(int n, int count, uint64_t* rng) {
  std::vector<int> all(n);
  for (int i = 0; i < n; ++i) all[i] = i;
  for (int i = 0; i < std::min(n, count); ++i) std::swap(all[i], all[i + Next(rng) % (n - i)]);
  all.resize(std::min(n, count));
  std::sort(all.begin(), all.end());
  return all;
}

using Prompts = std::vector<std::vector<int32_t>>;

absl::Status AddNeedles(const std::vector<Text>& texts, const Tokenizer& tokenizer,
                        const PromptPlan& plan, Prompts* prompts) {
  const auto count = [&](const std::string& text) -> absl::StatusOr<size_t> {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text));
    return ids.size();
  };
  for (int i = 0; i < plan.needle_prompts; ++i) {
    const Text& text = texts[i % texts.size()];
    ASSIGN_OR_RETURN(const NeedleText hidden,
                     BuildNeedleText(text.content, plan.prompt_tokens, 5, plan.seed + i, count));
    ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                     tokenizer.Encode(NeedlePrompt(hidden, hidden.needles[i % 5])));
    prompts->push_back(std::move(ids));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Text>> ReadTexts(const std::vector<std::string>& paths) {
  std::vector<Text> texts;
  for (const std::string& path : paths) {
    std::error_code ec;
    const uint64_t bytes = std::filesystem::file_size(path, ec);
    if (ec) return absl::NotFoundError(absl::StrCat(path, ": ", ec.message()));
    if (bytes > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", bytes, " bytes, at most ", kMaxTextBytes, " are read"));
    }
    std::ifstream in(path, std::ios::binary);
    Text text{path, std::string(std::istreambuf_iterator<char>(in), {})};
    if (!in.good() && !in.eof())
      return absl::UnavailableError(absl::StrCat(path, ": reading failed"));
    texts.push_back(std::move(text));
  }
  if (texts.empty()) return absl::InvalidArgumentError("no text files: give --text FILE");
  return texts;
}

absl::StatusOr<Prompts> MakePrompts(const std::vector<Text>& texts, const Tokenizer& tokenizer,
                                    const PromptPlan& plan) {
  std::vector<Prompts> pieces;
  size_t available = 0;
  for (const Text& text : texts) {
    const auto ids = tokenizer.Encode(text.content);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(),
                          absl::StrCat(text.path, ": ", ids.status().message()));
    }
    pieces.emplace_back();
    for (size_t i = 0; i + plan.prompt_tokens <= ids->size(); i += plan.prompt_tokens)
      pieces.back().emplace_back(ids->begin() + i, ids->begin() + i + plan.prompt_tokens);
    available += pieces.back().size();
  }
  if (available == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no text has ", plan.prompt_tokens, " tokens, the length of one prompt"));
  }
  const size_t wanted = plan.tokens == 0
                            ? available
                            : std::max(1, plan.tokens / plan.prompt_tokens - plan.needle_prompts);
  uint64_t rng = plan.seed;
  Prompts prompts;
  // The shortest first, so that what it lacks of its share the longer ones give.
  std::sort(pieces.begin(), pieces.end(),
            [](const Prompts& a, const Prompts& b) { return a.size() < b.size(); });
  for (size_t i = 0; i < pieces.size(); ++i) {
    const size_t left = pieces.size() - i;
    const size_t share = (std::min(wanted, available) - prompts.size() + left - 1) / left;
    for (const int p : Choose(static_cast<int>(pieces[i].size()), static_cast<int>(share), &rng))
      prompts.push_back(std::move(pieces[i][p]));
  }
  RETURN_IF_ERROR(AddNeedles(texts, tokenizer, plan, &prompts));
  return prompts;
}

}  // namespace oscarkv
