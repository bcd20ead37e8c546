#include "gateway/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace oscarkv::gateway {
namespace {

struct Case {
  const char* name;
  std::vector<std::string> stop;
  std::vector<std::string> pieces;
  std::vector<std::string> out;  // after each piece
  std::string rest;              // of Finish
  bool matched;
};

const Case kCases[] = {
    {"NoStopStrings", {}, {"a", "b"}, {"a", "b"}, "", false},
    {"InOnePiece", {"END"}, {"abcENDdef"}, {"abc"}, "", true},
    {"AcrossPieces", {"END"}, {"abE", "N", "D!"}, {"ab", "", ""}, "", true},
    {"FalseStart", {"END"}, {"abE", "NX"}, {"ab", "ENX"}, "", false},
    {"HeldAtTheEnd", {"END"}, {"abEN"}, {"ab"}, "EN", false},
    {"HeldIsTheLongestSuffixOnly", {"abab!"}, {"xabab", "ab"}, {"x", "ab"}, "abab", false},
    {"SelfOverlap", {"aab"}, {"aaa", "ab"}, {"a", "a"}, "", true},
    {"FirstToCompleteWins", {"abcd", "bc"}, {"abcd"}, {"a"}, "", true},
    {"LongestOfThoseCompleteTogether", {"c", "abc"}, {"xabc"}, {"x"}, "", true},
    {"NothingAfterAMatch", {"x"}, {"ax", "b", "c"}, {"a", "", ""}, "", true},
    {"EmptyStopStringIgnored", {"", "z"}, {"abz"}, {"ab"}, "", true},
    {"EmptyPieceKeepsHold", {"ab"}, {"a", "", "b"}, {"", "", ""}, "", true},
    {"MultiByteCharacters", {"é!"}, {"caf", "é", "!"}, {"caf", "", ""}, "", true},
    {"SharedLeadByteIsNotHeldBeyondItsCharacter", {"é"}, {"è"}, {"è"}, "", false},
};

TEST(StopMatcher, Cases) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    StopMatcher matcher(c.stop);
    for (size_t i = 0; i < c.pieces.size(); ++i) EXPECT_EQ(matcher.Push(c.pieces[i]), c.out[i]);
    EXPECT_EQ(matcher.matched(), c.matched);
    EXPECT_EQ(matcher.Finish(), c.rest);
  }
}

// The specification: the end of the first occurrence to complete, the longest of those.
std::string Reference(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& s : stop) {
      if (!s.empty() && s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0) {
        longest = std::max(longest, s.size());
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(StopMatcher, AnyCutGivesTheSameAnswer) {
  const uint32_t seed = 20240117;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto word = [&](size_t max) {
    std::string s(random() % (max + 1), 'a');
    for (char& c : s) c = static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stop;
    for (size_t i = random() % 4; i > 0; --i) stop.push_back(word(6));
    const std::string text = word(40);
    StopMatcher matcher(stop);
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(random() % 5, text.size() - at);
      out += matcher.Push(text.substr(at, n));
      at += n;
      // Everything that is out stays a prefix of the answer: nothing was sent too early.
      const std::string expected = Reference(text, stop);
      ASSERT_EQ(expected.substr(0, out.size()), out) << text;
    }
    out += matcher.Finish();
    ASSERT_EQ(out, Reference(text, stop)) << text;
  }
}

}  // namespace
}  // namespace oscarkv::gateway
