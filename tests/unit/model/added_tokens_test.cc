#include "model/added_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// "text" for plain parts, "text#id" for added tokens.
std::vector<std::string> Split(const std::vector<AddedToken>& tokens, const std::string& text) {
  AddedTokenMatcher matcher;
  for (const AddedToken& token : tokens) matcher.Add(token.content, token);
  std::vector<AddedTokenMatcher::Part> parts;
  matcher.Split(text, &parts);
  std::vector<std::string> out;
  std::string joined;
  for (const auto& part : parts) {
    out.push_back(part.id < 0 ? std::string(part.text) : absl::StrCat(part.text, "#", part.id));
    absl::StrAppend(&joined, part.text);
  }
  EXPECT_EQ(joined, text);
  return out;
}

TEST(AddedTokensTest, LeftmostLongest) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<a>"},
                                          {.id = 2, .content = "<a><b>"},
                                          {.id = 3, .content = "<b>c"},
                                          {.id = 4, .content = "é"}};
  EXPECT_THAT(Split(tokens, "x<a>y"), ElementsAre("x", "<a>#1", "y"));
  EXPECT_THAT(Split(tokens, "<a><b>c"), ElementsAre("<a><b>#2", "c"));
  EXPECT_THAT(Split(tokens, "<a><a><b"), ElementsAre("<a>#1", "<a>#1", "<b"));
  EXPECT_THAT(Split(tokens, "<<a>"), ElementsAre("<", "<a>#1"));
  EXPECT_THAT(Split(tokens, "aéb"), ElementsAre("a", "é#4", "b"));
  EXPECT_THAT(Split(tokens, ""), ElementsAre());
  EXPECT_THAT(Split({}, "abc"), ElementsAre("abc"));
}

TEST(AddedTokensTest, Strip) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<l>", .lstrip = true},
                                          {.id = 2, .content = "<r>", .rstrip = true},
                                          {.id = 3, .content = "<p>"}};
  EXPECT_THAT(Split(tokens, "a \u3000\n<l> b"), ElementsAre("a", " \u3000\n<l>#1", " b"));
  EXPECT_THAT(Split(tokens, "a <r> \u2003b"), ElementsAre("a ", "<r> \u2003#2", "b"));
  EXPECT_THAT(Split(tokens, "  <l>"), ElementsAre("  <l>#1"));
  EXPECT_THAT(Split(tokens, "<r>  "), ElementsAre("<r>  #2"));
  EXPECT_THAT(Split(tokens, "<r>  <l>"), ElementsAre("<r>  #2", "<l>#1"));  // taken once
  EXPECT_THAT(Split(tokens, "<p>  <l>"), ElementsAre("<p>#3", "  <l>#1"));
}

TEST(AddedTokensTest, SingleWord) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "cat", .single_word = true}};
  EXPECT_THAT(Split(tokens, "cat"), ElementsAre("cat#1"));
  EXPECT_THAT(Split(tokens, "a cat."), ElementsAre("a ", "cat#1", "."));
  EXPECT_THAT(Split(tokens, "concat cats catcat écat cat\u0301"),
              ElementsAre("concat cats catcat écat cat\u0301"));
}

TEST(AddedTokensTest, Parse) {
  const auto tokens = ParseAddedTokens(json::parse(R"({"added_tokens": [
      {"id": 7, "content": "<s>", "special": true},
      {"id": 8, "content": "w", "special": false, "normalized": false, "single_word": true,
       "lstrip": true, "rstrip": true}]})"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 2u);
  EXPECT_TRUE((*tokens)[0].special);
  EXPECT_FALSE((*tokens)[0].normalized || (*tokens)[0].lstrip);
  EXPECT_TRUE((*tokens)[1].single_word && (*tokens)[1].lstrip && (*tokens)[1].rstrip);
  EXPECT_EQ((*tokens)[1].id, 8);
  EXPECT_TRUE(ParseAddedTokens(json::object())->empty());
}

TEST(AddedTokensTest, Broken) {
  for (const char* list :
       {"7", "[7]", R"([{"id": 1}])", R"([{"content": "x"}])", R"([{"id": -1, "content": "x"}])",
        R"([{"id": 4194304, "content": "x"}])", R"([{"id": 1, "content": ""}])",
        R"([{"id": 1, "content": "x", "special": 1}])", R"([{"id": 1.5, "content": "x"}])"}) {
    const auto tokens = ParseAddedTokens({{"added_tokens", json::parse(list)}});
    EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << list;
  }
  const auto long_token =
      ParseAddedTokens({{"added_tokens", {{{"id", 1}, {"content", std::string(2000, 'x')}}}}});
  EXPECT_THAT(std::string(long_token.status().message()), HasSubstr("2000 bytes"));
}

}  // namespace
}  // namespace oscarkv
