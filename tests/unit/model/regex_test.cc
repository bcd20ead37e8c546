#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/regex_pattern.h"
#include "model/regex_splitter.h"

namespace oscarkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kQwen[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::vector<std::string> Split(const std::string& pattern, const std::string& text) {
  const auto splitter = RegexSplitter::Compile(pattern);
  EXPECT_TRUE(splitter.ok()) << splitter.status();
  if (!splitter.ok()) return {};
  RegexSplitter::Scratch scratch;
  std::vector<absl::string_view> pieces;
  EXPECT_TRUE((*splitter)->Split(text, &scratch, &pieces).ok());
  std::vector<std::string> out(pieces.begin(), pieces.end());
  std::string joined;
  for (const std::string& piece : out) {
    EXPECT_FALSE(piece.empty());
    joined += piece;
  }
  EXPECT_EQ(joined, text);
  return out;
}

TEST(RegexSplitterTest, QwenPattern) {
  EXPECT_THAT(Split(kQwen, "Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(Split(kQwen, "it's WE'LL 12"), ElementsAre("it", "'s", " WE", "'LL", " ", "1", "2"));
  EXPECT_THAT(Split(kQwen, "a  b\n\n c   "), ElementsAre("a", " ", " b", "\n\n", " c", "   "));
  EXPECT_THAT(Split(kQwen, "日本語。"), ElementsAre("日本語", "。"));
  EXPECT_THAT(Split(kQwen, "x = {\n}"), ElementsAre("x", " =", " {\n", "}"));
  EXPECT_THAT(Split(kQwen, ""), ElementsAre());
}

TEST(RegexSplitterTest, GapsAndEmptyMatches) {
  EXPECT_THAT(Split("b+", "aabbacb"), ElementsAre("aa", "bb", "ac", "b"));
  EXPECT_THAT(Split("z*", "aé"), ElementsAre("a", "é"));  // empty matches separate
  EXPECT_THAT(Split("x", "aé"), ElementsAre("aé"));
  EXPECT_THAT(Split("(?=b)", "abab"), ElementsAre("a", "ba", "b"));
}

// \s means the White_Space property, to which U+0085 belongs, U+180E and U+FEFF do not.
TEST(RegexSplitterTest, WhiteSpace) {
  EXPECT_THAT(Split("\\s", "a\u0085b\u180ec\ufeffd\u3000e"),
              ElementsAre("a", "\u0085", "b\u180ec\ufeffd", "\u3000", "e"));
  EXPECT_THAT(Split("[\\s]", "a\u0085b"), ElementsAre("a", "\u0085", "b"));
  EXPECT_THAT(Split("\\S+", "a\u180e b\u2028"), ElementsAre("a\u180e", " ", "b", "\u2028"));
  EXPECT_THAT(Split("[\\Sx]+", "a\u180e b"), ElementsAre("a\u180e", " ", "b"));
  EXPECT_THAT(Split("[^\\s]+", "a\u0085b"), ElementsAre("a", "\u0085", "b"));
}

TEST(RegexSplitterTest, OtherClasses) {
  EXPECT_THAT(Split("\\w+", "né_e\u0301 9-x"), ElementsAre("né_e\u0301", " ", "9", "-", "x"));
  EXPECT_THAT(Split("\\w+", "x²½ ④"), ElementsAre("x²½", " ④"));  // Oniguruma's Latin-1 quirk
  EXPECT_THAT(Split("[\\w]+", "x²½"), ElementsAre("x", "²½"));
  EXPECT_THAT(Split("\\W+", "a -b"), ElementsAre("a", " -", "b"));
  EXPECT_THAT(Split("\\d+", "a1٣²b"), ElementsAre("a", "1٣", "²b"));
  EXPECT_THAT(Split("\\p{Han}+", "a中。b"), ElementsAre("a", "中", "。b"));  // not by extension
  EXPECT_THAT(Split("\\p{^L}+", "a1b"), ElementsAre("a", "1", "b"));
  EXPECT_THAT(Split("[\\u4e00-\\u9fa5]+", "a中b"), ElementsAre("a", "中", "b"));
  EXPECT_THAT(Split("\\x{1F600}|\\x41", "😀A"), ElementsAre("😀", "A"));
  EXPECT_THAT(Split("\\v", "a\u000bb\nc"), ElementsAre("a", "\u000b", "b\nc"));
  EXPECT_THAT(Split("(?i:é)", "xÉy"), ElementsAre("x", "É", "y"));
  EXPECT_THAT(Split("a++|b?+", "aab"), ElementsAre("aa", "b"));
  EXPECT_THAT(Split("^b", "a\nb"), ElementsAre("a\n", "b"));  // Ruby's ^ is a line's
}

TEST(RegexPatternTest, WhatWouldMeanSomethingElseIsRefused) {
  for (const char* pattern :
       {"\\bx",    "\\Bx",    "\\h",    "\\R",     "\\X",     "\\K",         "\\G",    "\\Z",
        "\\1",     "\\0",     "\\k<a>", "\\C",     "[a[bc]]", "[[:alpha:]]", "[a&&b]", "[\\W]",
        "[\\A]",   "[]a]",    "(?m:.)", "(?s:.)",  "(?x)a",   "(?R)",        "(?1)",   "(?#c)",
        "(?<n>a)", "(*UTF)a", "a{2}+",  "a{,3}",   "\\pL",    "\\p{",        "\\x",    "\\x4",
        "\\x80",   "\\x{zz}", "\\u12",  "\\u{41}", "\\p{L&}", "\\Qa\\E",     "\\"}) {
    const auto translated = TranslatePattern(pattern);
    EXPECT_EQ(translated.status().code(), absl::StatusCode::kUnimplemented) << pattern;
  }
}

TEST(RegexSplitterTest, BrokenPatterns) {
  for (const std::string& pattern :
       {std::string("("), std::string(")"), std::string("[a"), std::string("*a"),
        std::string("\\p{Nonsense}"), std::string("\\x{110000}"), std::string("(?<=a+)b"),
        std::string(70000, 'a'), std::string(100, '(') + std::string(100, ')'),
        std::string("((a{1000}){1000}){1000}"), std::string("\xff")}) {
    const auto splitter = RegexSplitter::Compile(pattern);
    EXPECT_EQ(splitter.status().code(), absl::StatusCode::kInvalidArgument)
        << pattern.substr(0, 50) << " " << splitter.status();
  }
}

// Catastrophic backtracking ends in an error, not in a hang.
TEST(RegexSplitterTest, MatchLimit) {
  const auto splitter = RegexSplitter::Compile("(?:a|a)*?b|(?:a+)+$x");
  ASSERT_TRUE(splitter.ok()) << splitter.status();
  RegexSplitter::Scratch scratch;
  std::vector<absl::string_view> pieces;
  const absl::Status status = (*splitter)->Split(std::string(200, 'a'), &scratch, &pieces);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit"));
}

// Deep backtracking that the JIT's small stack cannot hold.
TEST(RegexSplitterTest, DeepBacktracking) {
  const std::string text(100000, 'a');
  EXPECT_THAT(Split("(?:a|b)+", text), ElementsAre(text));
}

TEST(RegexSplitterTest, LongRuns) {
  for (const std::string unit : {" ", "\n", "a", "1", "=", "é", "\u3000", " \n"}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    Split(kQwen, text);
    Split(kQwen, text + "x");
  }
}

}  // namespace
}  // namespace oscarkv
