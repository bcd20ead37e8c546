#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/model/tiny_tokenizer.h"

namespace oscarkv {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> Make(const json& file) {
  auto tokenizer = Tokenizer::Parse(file.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

const Tokenizer& Reference() {
  static const Tokenizer* tokenizer = Tokenizer::Load("models/reference")->release();
  return *tokenizer;
}

json ReadJson(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file, nullptr, /*allow_exceptions=*/false);
}

std::string Stream(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(&tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    EXPECT_EQ(FindInvalidUtf8(piece), absl::string_view::npos);  // never half a character
    text += piece;
  }
  return text + decoder.Finish();
}

// Ids made by a JavaScript implementation (tests/integration/tokenizer_agreement).
TEST(TokenizerTest, ReferenceGolden) {
  const json golden = ReadJson("tests/golden/tokenizer_reference.json");
  ASSERT_GE(golden.size(), 300u);
  for (const json& entry : golden) {
    const std::string text = entry["text"];
    const auto ids = Reference().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, entry["ids"].get<Ids>()) << text;
    EXPECT_EQ(Stream(Reference(), *ids), Reference().Decode(*ids)) << text;
  }
}

TEST(TokenizerTest, ReferenceFacts) {
  EXPECT_EQ(Reference().vocab_size(), 8192);
  EXPECT_EQ(Reference().TokenId("<|endoftext|>"), 8189);
  EXPECT_EQ(Reference().TokenId("Ġt"), Reference().Encode(" t")->front());
  EXPECT_EQ(Reference().TokenId("no such token"), -1);
  EXPECT_EQ(Reference().TokenBytes(Reference().TokenId("Ġt")), " t");
  EXPECT_EQ(Reference().TokenBytes(-1), "");
  EXPECT_EQ(Reference().TokenBytes(8192), "");
}

TEST(TokenizerTest, BookRoundTrips) {
  std::ifstream file("tests/data/wendigo.txt");
  std::stringstream buffer;
  buffer << file.rdbuf();
  const std::string text = buffer.str();
  ASSERT_GT(text.size(), 100000u);
  const auto ids = Reference().Encode(text);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(Reference().Decode(*ids), text);
}

TEST(TokenizerTest, RefusesWhatIsNotUtf8) {
  const auto ids = Reference().Encode("good\xff");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 4"));
}

TEST(TokenizerTest, SpecialTokens) {
  const Ids ids = *Reference().Encode("a<|im_end|>b");
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_EQ(ids[1], 8191);
  EXPECT_EQ(Reference().Decode(ids), "ab");
  EXPECT_EQ(Reference().Decode(ids, false), "a<|im_end|>b");
  EXPECT_EQ(Reference().TokenBytes(8191), "");
  EXPECT_EQ(Reference().TokenBytes(8191, false), "<|im_end|>");
  EXPECT_EQ(Reference().Decode({ids[0], -5, 99999, ids[2]}), "ab");
}

// No post-processor of the reference model adds tokens; Llama 3's puts its BOS in front.
TEST(TokenizerTest, TemplateProcessing) {
  EXPECT_EQ(*Reference().Encode("a", true), *Reference().Encode("a", false));
  json file = TinyTokenizer();
  file["added_tokens"] = {{{"id", 256}, {"content", "<bos>"}, {"special", true}},
                          {{"id", 257}, {"content", "<eos>"}, {"special", true}}};
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", "<bos>"}, {"type_id", 0}}}},
           {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
           {{"SpecialToken", {{"id", "<eos>"}, {"type_id", 0}}}}}},
         {"special_tokens",
          {{"<bos>", {{"id", "<bos>"}, {"ids", {256}}, {"tokens", {"<bos>"}}}},
           {"<eos>", {{"id", "<eos>"}, {"ids", {257}}, {"tokens", {"<eos>"}}}}}}}}}};
  const auto tokenizer = Make(file);
  EXPECT_THAT(*tokenizer->Encode("a", true), ElementsAre(256, 'a', 257));
  EXPECT_THAT(*tokenizer->Encode("", true), ElementsAre(256, 257));
  EXPECT_THAT(*tokenizer->Encode("a"), ElementsAre('a'));
  EXPECT_EQ(tokenizer->vocab_size(), 258);
}

TEST(TokenizerTest, PrefixSpace) {
  json file = TinyTokenizer();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  file["added_tokens"] = {{{"id", 256}, {"content", "<x>"}, {"special", true}}};
  const auto tokenizer = Make(file);
  EXPECT_THAT(*tokenizer->Encode("a<x>b"), ElementsAre(' ', 'a', 256, ' ', 'b'));
  EXPECT_THAT(*tokenizer->Encode(" a"), ElementsAre(' ', 'a'));
}

TEST(TokenizerTest, SequenceOfSplits) {
  json file = TinyTokenizer({{"1", "2"}, {"a", "1"}});
  EXPECT_THAT(*Make(file)->Encode("a12"), ElementsAre('a', 256));  // letters and digits apart
  const auto split = [](const char* regex) {
    return json{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
  };
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split("\\p{N}"), split("."), {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}};
  EXPECT_THAT(*Make(file)->Encode("a12"), ElementsAre('a', '1', '2'));
  file["pre_tokenizer"]["pretokenizers"] = {
      split("zzz"), {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}};
  EXPECT_THAT(*Make(file)->Encode("a12"), ElementsAre('a', 256));  // rank, not position
  EXPECT_THAT(*Make(file)->Encode("a1"), ElementsAre(257));
}

TEST(TokenizerTest, NormalizedAddedTokens) {
  json file = TinyTokenizer();
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  file["added_tokens"] = {{{"id", 256}, {"content", "é!"}, {"normalized", true}},
                          {{"id", 257}, {"content", "e\u0301?"}, {"normalized", true}},
                          {{"id", 258}, {"content", "e\u0301+"}, {"normalized", false}}};
  const auto tokenizer = Make(file);
  EXPECT_THAT(*tokenizer->Encode("e\u0301!"), ElementsAre(256));
  EXPECT_THAT(*tokenizer->Encode("é?"), ElementsAre(257));
  EXPECT_THAT(*tokenizer->Encode("e\u0301+"), ElementsAre(258));  // as it stands in the text
  EXPECT_THAT(*tokenizer->Encode("é+"), ElementsAre(0xc3, 0xa9, '+'));
  EXPECT_EQ(tokenizer->Decode({256, 258}), "é!e\u0301+");
}

struct Refusal {
  const char* name;
  json patch;
  absl::StatusCode code;
  const char* message;
};
class TokenizerRefusalTest : public ::testing::TestWithParam<Refusal> {};
TEST_P(TokenizerRefusalTest, IsNamed) {
  json file = TinyTokenizer();
  file.merge_patch(GetParam().patch);
  const auto tokenizer = Tokenizer::Parse(file.dump());
  EXPECT_EQ(tokenizer.status().code(), GetParam().code) << tokenizer.status();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(GetParam().message));
}

constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
json Pre(json value) {
  return {{"pre_tokenizer", std::move(value)}};
}
json Sequence(json list) {
  return Pre({{"type", "Sequence"}, {"pretokenizers", std::move(list)}});
}
json Template(json single) {
  return {{"post_processor", {{"type", "TemplateProcessing"}, {"single", std::move(single)}}}};
}
INSTANTIATE_TEST_SUITE_P(
    Tokenizer, TokenizerRefusalTest,
    ::testing::Values(
        Refusal{"normalizer", {{"normalizer", {{"type", "NFKC"}}}}, kUnimplemented, "NFKC"},
        Refusal{
            "normalizer2",
            {{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}}}},
            kUnimplemented,
            "Lowercase"},
        Refusal{"no_pre", Pre(nullptr), kUnimplemented, "pre_tokenizer"},
        Refusal{"metaspace", Pre({{"type", "Metaspace"}}), kUnimplemented, "Metaspace"},
        Refusal{"digits", Sequence({{{"type", "Digits"}}, {{"type", "ByteLevel"}}}), kUnimplemented,
                "Digits"},
        Refusal{"not_last", Sequence({{{"type", "ByteLevel"}}, {{"type", "ByteLevel"}}}),
                kUnimplemented, "ByteLevel"},
        Refusal{"no_bytes",
                Sequence(
                    {{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}}}),
                kUnimplemented, "Split"},
        Refusal{
            "removed",
            Sequence({{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Removed"}},
                      {{"type", "ByteLevel"}}}),
            kUnimplemented, "Removed"},
        Refusal{
            "string",
            Sequence({{{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Isolated"}},
                      {{"type", "ByteLevel"}}}),
            kUnimplemented, "String"},
        Refusal{
            "regex",
            Sequence({{{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}},
                      {{"type", "ByteLevel"}}}),
            kInvalid, "(a"},
        Refusal{"empty_sequence", Sequence(json::array()), kInvalid, "1..16"},
        Refusal{"use_regex", Pre({{"use_regex", 1}}), kInvalid, "use_regex"},
        Refusal{"decoder", {{"decoder", {{"type", "WordPiece"}}}}, kUnimplemented, "WordPiece"},
        Refusal{"no_decoder", {{"decoder", nullptr}}, kUnimplemented, "decoder"},
        Refusal{"post",
                {{"post_processor", {{"type", "BertProcessing"}}}},
                kUnimplemented,
                "BertProcessing"},
        Refusal{"template_twice",
                Template({{{"Sequence", {{"id", "A"}}}}, {{"Sequence", {{"id", "A"}}}}}),
                kUnimplemented, "post_processor"},
        Refusal{"template_unknown",
                Template({{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}),
                kInvalid, "<s>"},
        Refusal{"model", {{"model", nullptr}}, kInvalid, "no model"},
        Refusal{"added_contradiction",
                {{"added_tokens", {{{"id", 300}, {"content", "a"}}}}},
                kInvalid,
                "contradicts"},
        Refusal{"added_contradiction2",
                {{"added_tokens", {{{"id", 65}, {"content", "<x>"}}}}},
                kInvalid,
                "contradicts"},
        Refusal{"added_twice",
                {{"added_tokens",
                  {{{"id", 300}, {"content", "<x>"}}, {{"id", 301}, {"content", "<x>"}}}}},
                kInvalid,
                "twice"}),
    [](const auto& info) { return info.param.name; });

TEST(TokenizerTest, BrokenFiles) {
  EXPECT_EQ(Tokenizer::Parse("").status().code(), kInvalid);
  EXPECT_EQ(Tokenizer::Parse("[]").status().code(), kInvalid);
  EXPECT_EQ(Tokenizer::Parse(std::string(1000, '[')).status().code(), kInvalid);
  EXPECT_EQ(Tokenizer::Load("no/such/folder").status().code(), absl::StatusCode::kNotFound);
}

TEST(StreamDecoderTest, HoldsBackIncompleteCharacters) {
  const auto tokenizer = Make(TinyTokenizer());
  StreamDecoder decoder(tokenizer.get());
  EXPECT_EQ(decoder.Push(0xf0), "");
  EXPECT_EQ(decoder.Push(0x9f), "");
  EXPECT_EQ(decoder.Push(0x98), "");
  EXPECT_EQ(decoder.Push(0x80), "😀");
  EXPECT_EQ(decoder.Push(0xe2), "");
  EXPECT_EQ(decoder.Push('a'), "\ufffda");  // it never became a character
  EXPECT_EQ(decoder.Push(0x80), "\ufffd");
  EXPECT_EQ(decoder.Push(0xc3), "");
  EXPECT_EQ(decoder.Finish(), "\ufffd");
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Push('b'), "b");
}

TEST(StreamDecoderTest, AgreesWithDecodeOnAnyBytes) {
  const auto tokenizer = Make(TinyTokenizer());
  std::mt19937 random(3);
  const int32_t lively[] = {'a', 0x80, 0xbf, 0xc2, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0x90, 0x9f, 0xff};
  for (int round = 0; round < 5000; ++round) {
    Ids ids(random() % 12);
    for (int32_t& id : ids) id = lively[random() % std::size(lively)];
    EXPECT_EQ(Stream(*tokenizer, ids), tokenizer->Decode(ids));
  }
}

TEST(TokenizerTest, ConcurrentEncoding) {
  const std::string text = "Hello wörld, it's 12345 <|im_end|> e\u0301 日本語\n\n";
  const Ids expected = *Reference().Encode(text);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) EXPECT_EQ(*Reference().Encode(text), expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace oscarkv
