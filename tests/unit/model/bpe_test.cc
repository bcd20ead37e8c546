#include "model/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/model/tiny_tokenizer.h"

namespace oscarkv {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Encode(const Bpe& bpe, const std::string& word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.Encode(word, &scratch, &ids);
  return ids;
}

TEST(BpeTest, LowestRankFirstThenLeftmost) {
  const auto bpe = Bpe::Parse(TinyModel({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "a"}}));
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  EXPECT_THAT(Encode(**bpe, "abc"), ElementsAre('a', 256));
  EXPECT_THAT(Encode(**bpe, "ab"), ElementsAre(257));
  EXPECT_THAT(Encode(**bpe, "aaaaa"), ElementsAre(258, 259));  // aa aa a -> aa, aaa
  EXPECT_THAT(Encode(**bpe, ""), ElementsAre());
  EXPECT_THAT(Encode(**bpe, "\xff"), ElementsAre(255));
}

TEST(BpeTest, MergesAsStrings) {
  json model = TinyModel({{" ", "t"}, {" t", "h"}});
  for (json& merge : model["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const auto bpe = Bpe::Parse(model);
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  EXPECT_THAT(Encode(**bpe, " th"), ElementsAre(257));
  EXPECT_EQ((*bpe)->IdOfSpelling("Ġth"), 257);
  EXPECT_EQ((*bpe)->IdOfSpelling(" th"), -1);
  EXPECT_EQ((*bpe)->tokens()[257], " th");
}

TEST(BpeTest, IgnoreMerges) {
  json model = TinyModel({{"a", "b"}});
  model["vocab"]["xyz"] = 300;  // no merges lead to it
  EXPECT_THAT(Encode(**Bpe::Parse(model), "xyz"), ElementsAre('x', 'y', 'z'));
  model["ignore_merges"] = true;
  EXPECT_THAT(Encode(**Bpe::Parse(model), "xyz"), ElementsAre(300));
  EXPECT_THAT(Encode(**Bpe::Parse(model), "xyzab"), ElementsAre('x', 'y', 'z', 256));
}

// The definition: again and again, the pair of lowest rank, the leftmost of equals.
std::vector<int32_t> Slow(const json& model, const std::string& word) {
  const auto id = [&](const std::string& bytes) { return model["vocab"][Spell(bytes)].get<int>(); };
  std::map<std::pair<std::string, std::string>, int> ranks;
  for (const json& merge : model["merges"]) {
    const int rank = static_cast<int>(ranks.size());
    ranks.emplace(std::pair(*BytesOfSpelling(merge[0].get<std::string>()),
                            *BytesOfSpelling(merge[1].get<std::string>())),
                  rank);
  }
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  while (true) {
    int best = -1, best_rank = 1 << 30;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = ranks.find({symbols[i], symbols[i + 1]});
      if (it != ranks.end() && it->second < best_rank) {
        best = static_cast<int>(i);
        best_rank = it->second;
      }
    }
    if (best < 0) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + best + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& symbol : symbols) ids.push_back(id(symbol));
  return ids;
}

TEST(BpeTest, AgreesWithTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 40; ++round) {
    // Random merges of what exists already, each pair once.
    std::vector<std::string> pieces = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    std::map<std::pair<std::string, std::string>, bool> seen;
    for (int i = 0; i < 30; ++i) {
      const auto pair =
          std::pair(pieces[random() % pieces.size()], pieces[random() % pieces.size()]);
      if (pair.first.size() + pair.second.size() > 12 || !seen.emplace(pair, true).second) continue;
      merges.push_back(pair);
      pieces.push_back(pair.first + pair.second);
    }
    std::shuffle(merges.begin(), merges.end(),
                 random);  // also ranks that merges cannot reach in order
    const json model = TinyModel(merges);
    const auto bpe = Bpe::Parse(model);
    ASSERT_TRUE(bpe.ok()) << bpe.status();
    for (int i = 0; i < 50; ++i) {
      std::string word(random() % 40, 'a');
      for (char& c : word) c = static_cast<char>('a' + random() % 3);
      EXPECT_EQ(Encode(**bpe, word), Slow(model, word)) << word;
    }
  }
}

// Quadratic work would take minutes.
TEST(BpeTest, LongWord) {
  const auto bpe = Bpe::Parse(TinyModel({{"a", "a"}, {"aa", "aa"}, {"a", "b"}}));
  ASSERT_TRUE(bpe.ok());
  const std::vector<int32_t> ids = Encode(**bpe, std::string(2000000, 'a'));
  EXPECT_EQ(ids, std::vector<int32_t>(500000, 257));
}

struct Refusal {
  const char* name;
  json patch;
  absl::StatusCode code;
  const char* message;
};
class BpeRefusalTest : public ::testing::TestWithParam<Refusal> {};
TEST_P(BpeRefusalTest, IsNamed) {
  json model = TinyModel({{"a", "b"}});
  model.merge_patch(GetParam().patch);
  const auto bpe = Bpe::Parse(model);
  EXPECT_EQ(bpe.status().code(), GetParam().code) << bpe.status();
  EXPECT_THAT(std::string(bpe.status().message()), HasSubstr(GetParam().message));
}

constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
INSTANTIATE_TEST_SUITE_P(
    Bpe, BpeRefusalTest,
    ::testing::Values(
        Refusal{"type", {{"type", "Unigram"}}, kUnimplemented, "Unigram"},
        Refusal{"dropout", {{"dropout", 0.1}}, kUnimplemented, "dropout"},
        Refusal{"prefix", {{"continuing_subword_prefix", "##"}}, kUnimplemented, "prefix"},
        Refusal{"suffix", {{"end_of_word_suffix", "</w>"}}, kUnimplemented, "suffix"},
        Refusal{"fallback", {{"byte_fallback", true}}, kUnimplemented, "byte_fallback"},
        Refusal{"ignore", {{"ignore_merges", 1}}, kInvalid, "ignore_merges"},
        Refusal{"no_vocab", {{"vocab", nullptr}}, kInvalid, "vocab"},
        Refusal{"no_merges", {{"merges", nullptr}}, kInvalid, "merges"},
        Refusal{"byte_missing", {{"vocab", {{"a", nullptr}}}}, kInvalid, "byte 0x61"},
        Refusal{"id_twice", {{"vocab", {{"zz", 5}}}}, kInvalid, "two tokens"},
        Refusal{"id_negative", {{"vocab", {{"zz", -1}}}}, kInvalid, "\"zz\" is -1"},
        Refusal{"id_huge", {{"vocab", {{"zz", 1 << 22}}}}, kInvalid, "\"zz\""},
        Refusal{"id_text", {{"vocab", {{"zz", "7"}}}}, kInvalid, "\"zz\""},
        Refusal{"empty_token", {{"vocab", {{"", 999}}}}, kInvalid, "empty"},
        Refusal{"merge_unknown",
                {{"merges", json::array({json::array({"a", "c"})})}},
                kInvalid,
                "must be tokens"},
        Refusal{"merge_three", {{"merges", {"a b c"}}}, kInvalid, "merge 0"},
        Refusal{"merge_number", {{"merges", {7}}}, kInvalid, "merge 0"},
        Refusal{"merge_one", {{"merges", json::array({json::array({"a"})})}}, kInvalid, "merge 0"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace oscarkv
