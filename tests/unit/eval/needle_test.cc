// Texts of the retrieval tasks, with a tokenizer that takes words.
#include "eval/needle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<size_t> CountWords(const std::string& text) {
  const std::vector<std::string> words =
      absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  return words.size();
}

std::string Book() {
  std::string book;
  for (int i = 0; i < 2000; ++i) absl::StrAppend(&book, "Sentence ", i, " says what it says. ");
  return book;
}

TEST(NeedleTest, HidesWhatIsAskedFor) {
  for (const int n : {1, 5}) {
    const auto text = BuildNeedleText(Book(), 300, n, 7, CountWords);
    ASSERT_TRUE(text.ok()) << text.status();
    ASSERT_EQ(text->needles.size(), static_cast<size_t>(n));
    for (const Needle& needle : text->needles) {
      EXPECT_THAT(text->text, HasSubstr(absl::StrCat("One of the special magic numbers for ",
                                                     needle.word, " is: ", needle.number, ".")));
      EXPECT_LE(*CountWords(NeedlePrompt(*text, needle)), 300u);
    }
    EXPECT_EQ(BuildNeedleText(Book(), 300, n, 7, CountWords)->text, text->text);
    EXPECT_NE(BuildNeedleText(Book(), 300, n, 8, CountWords)->text, text->text);
  }
  EXPECT_FALSE(BuildNeedleText("Short.", 300, 1, 7, CountWords).ok());
  EXPECT_FALSE(BuildNeedleText(Book(), 300, 21, 7, CountWords).ok());
}

TEST(NeedleTest, CopyRepeatsItsList) {
  const auto text = BuildCopyText(Book(), 300, 8, 7, CountWords);
  ASSERT_TRUE(text.ok()) << text.status();
  ASSERT_EQ(text->needles.size(), 8u);
  std::string list;
  for (int i = 0; i < 8; ++i) {
    const Needle& needle = text->needles[i];
    const std::string prompt = CopyPrompt(*text, i);
    EXPECT_THAT(prompt, StartsWith(text->text));
    // The lines before, and the word whose number comes next; that one is in the first list alone.
    EXPECT_EQ(prompt, absl::StrCat(text->text, list, needle.word, ":"));
    absl::StrAppend(&list, needle.word, ": ", needle.number, "\n");
    EXPECT_LE(*CountWords(prompt), 300u);
  }
  EXPECT_THAT(text->text, HasSubstr(list));
  EXPECT_GT(*CountWords(text->text), 250u);  // the excerpt fills what is there
}

}  // namespace
}  // namespace oscarkv
