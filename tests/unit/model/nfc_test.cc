#include "model/nfc.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <random>
#include <string>

#include "model/utf8.h"

namespace oscarkv {
namespace {

std::string Nfc(const std::string& text) {
  const auto out = NormalizeNfc(text);
  EXPECT_TRUE(out.ok()) << out.status();
  return out.value_or("");
}

TEST(NfcTest, KnownForms) {
  EXPECT_EQ(Nfc(""), "");
  EXPECT_EQ(Nfc("plain, naïve\n"), "plain, naïve\n");
  EXPECT_EQ(Nfc("e\u0301"), "é");
  EXPECT_EQ(Nfc("\u212b\u2126"), "ÅΩ");
  EXPECT_EQ(Nfc("q\u0307\u0323"), "q\u0323\u0307");  // marks are ordered
  EXPECT_EQ(Nfc("\u1e9b\u0323"), "\u1e9b\u0323");
  EXPECT_EQ(Nfc("\u1100\u1161\u11a8"), "\uac01");  // Hangul
  EXPECT_EQ(Nfc("\u0958"), "\u0915\u093c");        // composition exclusion
  EXPECT_EQ(Nfc("\u0344"), "\u0308\u0301");
  EXPECT_EQ(Nfc("\u0301e"), "\u0301e");              // a mark without a base
  EXPECT_EQ(Nfc("a\u0305\u0301"), "a\u0305\u0301");  // blocked
  EXPECT_EQ(Nfc(std::string("a\0e\u0301", 5)), std::string("a\0é", 4));
  EXPECT_EQ(Nfc("ﬁ①"), "ﬁ①");  // compatibility characters stay
  EXPECT_EQ(Nfc("\U0010ffff\ufffe"), "\U0010ffff\ufffe");
}

// Against the library's own normalisation, which is right and slow.
TEST(NfcTest, AgreesWithUtf8proc) {
  std::mt19937 random(7);
  const char32_t ranges[][2] = {{0x41, 0x5a},     {0xc0, 0x17f},      {0x300, 0x345},
                                {0x591, 0x5bd},   {0x900, 0x970},     {0x1100, 0x11ff},
                                {0xac00, 0xac40}, {0x1e00, 0x1fff},   {0xf900, 0xfb4f},
                                {0x3040, 0x30ff}, {0x1d150, 0x1d1c0}, {0x2f800, 0x2fa1d}};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int n = random() % 20; n > 0; --n) {
      const auto& range = ranges[random() % std::size(ranges)];
      AppendUtf8(range[0] + random() % (range[1] - range[0] + 1), &text);
    }
    utf8proc_uint8_t* expected =
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_NE(expected, nullptr);
    EXPECT_EQ(Nfc(text), reinterpret_cast<const char*>(expected));
    std::free(expected);
  }
}

// Quadratic ordering of marks would take hours here.
TEST(NfcTest, LongRunOfMarks) {
  constexpr int kPairs = 500000;
  std::string text = "a", expected = "\u1ea1";  // a with dot below takes the first 0323
  for (int i = 0; i < kPairs; ++i) text += "\u0301\u0323";
  for (int i = 1; i < kPairs; ++i) expected += "\u0323";
  for (int i = 0; i < kPairs; ++i) expected += "\u0301";
  EXPECT_TRUE(Nfc(text) == expected);
}

}  // namespace
}  // namespace oscarkv
