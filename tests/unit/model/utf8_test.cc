#include "model/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "model/byte_alphabet.h"
#include "model/unicode_classes.h"

namespace oscarkv {
namespace {

using namespace std::string_literals;

TEST(Utf8Test, EveryCodePointRoundTrips) {
  for (char32_t code = 0; code <= 0x10ffff; ++code) {
    std::string text;
    AppendUtf8(code, &text);
    const Utf8Char c = DecodeUtf8(text);
    const bool surrogate = code >= 0xd800 && code <= 0xdfff;
    ASSERT_EQ(c.state == Utf8Char::State::kValid, !surrogate) << uint32_t{code};
    if (surrogate) continue;
    ASSERT_TRUE(c.code == code);
    ASSERT_EQ(static_cast<size_t>(c.bytes), text.size());
    // Each proper beginning is truncated, not invalid.
    for (size_t n = 1; n < text.size(); ++n) {
      ASSERT_EQ(TruncatedUtf8Tail(text.substr(0, n)), n) << uint32_t{code};
      ASSERT_EQ(DecodeUtf8(text.substr(0, n)).state, Utf8Char::State::kTruncated);
    }
    ASSERT_EQ(TruncatedUtf8Tail(text), 0u);
  }
}

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8("héllo"), absl::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8(""), absl::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("a\0b"s), absl::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\xc0\x80"), 0u);           // overlong
  EXPECT_EQ(FindInvalidUtf8("a\xe0\x80\x80"), 1u);      // overlong
  EXPECT_EQ(FindInvalidUtf8("a\xed\xa0\x80"), 1u);      // surrogate
  EXPECT_EQ(FindInvalidUtf8("a\xf4\x90\x80\x80"), 1u);  // > 10FFFF
  EXPECT_EQ(FindInvalidUtf8("abc\xe2\x82"), 3u);        // truncated
  EXPECT_EQ(FindInvalidUtf8("\xff"), 0u);
}

TEST(Utf8Test, ReplacesMaximalInvalidSequences) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xf0\x9f\x98z"), "a\ufffdz");  // one beginning, one mark
  EXPECT_EQ(ReplaceInvalidUtf8("\xe2\x82"), "\ufffd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xc0\x80"), "\ufffd\ufffd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xed\xa0\x80"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x80\x80\x80"), "\ufffd\ufffd\ufffd\ufffd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xe2\xe2\x82\xac"), "\ufffd€");
  EXPECT_EQ(ReplaceInvalidUtf8("ok €"), "ok €");
}

TEST(Utf8Test, TailOfInvalidBytesIsNotTruncated) {
  EXPECT_EQ(TruncatedUtf8Tail(""), 0u);
  EXPECT_EQ(TruncatedUtf8Tail("a"), 0u);
  EXPECT_EQ(TruncatedUtf8Tail("a\x80\x80"), 0u);
  EXPECT_EQ(TruncatedUtf8Tail("a\xc0"), 0u);
  EXPECT_EQ(TruncatedUtf8Tail("a\xed\xa0"), 0u);  // cannot become a character
  EXPECT_EQ(TruncatedUtf8Tail("€\xe2"), 1u);
}

TEST(ByteAlphabetTest, IsABijection) {
  std::string all, spelled;
  for (int b = 0; b < 256; ++b) {
    all.push_back(static_cast<char>(b));
    AppendUtf8(ByteAlphabet()[b], &spelled);
  }
  EXPECT_EQ(BytesOfSpelling(spelled), all);
  EXPECT_EQ(BytesOfSpelling("Ġthe"), " the");
  EXPECT_EQ(BytesOfSpelling("Ċ"), "\n");
  EXPECT_EQ(BytesOfSpelling("A~"), "A~");
  EXPECT_EQ(BytesOfSpelling("a b"), std::nullopt);  // a space is not its own character
  EXPECT_EQ(BytesOfSpelling("▁"), std::nullopt);
  EXPECT_EQ(BytesOfSpelling("\u00ad"), std::nullopt);
}

TEST(UnicodeClassesTest, KnownMembers) {
  for (const char32_t c : {0x20, 0x09, 0x0d, 0x0a, 0x0b, 0x0c, 0x85, 0xa0, 0x1680, 0x2000, 0x2028,
                           0x202f, 0x205f, 0x3000}) {
    EXPECT_TRUE(IsUnicodeWhiteSpace(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {0x61, 0x200b, 0xfeff, 0x180e, 0x2060, 0x00}) {
    EXPECT_FALSE(IsUnicodeWhiteSpace(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {0x61, 0x5a, 0x39, 0x5f, 0xe9, 0x436, 0x3042, 0x5b57, 0x301, 0x2160,
                           0x24b6, 0x200d, 0x203f}) {
    EXPECT_TRUE(IsUnicodeWordChar(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {0x20, 0x2d, 0x2e, 0x21, 0xb2, 0x1f600, 0x20ac, 0x00}) {
    EXPECT_FALSE(IsUnicodeWordChar(c)) << static_cast<uint32_t>(c);
  }
}

}  // namespace
}  // namespace oscarkv
