// A small tokenizer.json for tests: the 256 byte tokens, then one token for each merge.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "model/byte_alphabet.h"
#include "model/utf8.h"

namespace oscarkv {

// How the vocabulary spells bytes.
inline std::string Spell(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) AppendUtf8(ByteAlphabet()[static_cast<uint8_t>(c)], &out);
  return out;
}

// Byte b has id b; merge i (in bytes) makes id 256 + i, or what an earlier merge to the same token
// made.
inline nlohmann::json TinyModel(const std::vector<std::pair<std::string, std::string>>& merges) {
  nlohmann::json vocab = nlohmann::json::object(), list = nlohmann::json::array();
  for (int b = 0; b < 256; ++b) vocab[Spell(std::string(1, static_cast<char>(b)))] = b;
  for (const auto& [left, right] : merges) {
    const int next = static_cast<int>(vocab.size());
    vocab.emplace(Spell(left + right), next);
    list.push_back({Spell(left), Spell(right)});
  }
  return {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}};
}

// Words are split by GPT-2's expression.
inline nlohmann::json TinyTokenizer(
    const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  return {{"version", "1.0"},
          {"added_tokens", nlohmann::json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", TinyModel(merges)}};
}

}  // namespace oscarkv
