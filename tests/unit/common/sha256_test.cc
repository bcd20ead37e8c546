#include "common/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

std::string Hash(const std::string& s) {
  return ToHex(Sha256().Update(s).Finish());
}

// FIPS 180-4 examples.
TEST(Sha256Test, KnownVectors) {
  EXPECT_EQ(Hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Hash(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesGiveTheWhole) {
  const std::string text(300, 'q');
  for (size_t cut = 0; cut <= text.size(); cut += 37) {
    Sha256 sha;
    EXPECT_EQ(ToHex(sha.Update(text.substr(0, cut)).Update(text.substr(cut)).Finish()), Hash(text));
  }
}

TEST(Sha256Test, FinishStartsAnew) {
  Sha256 sha;
  sha.Update("first").Finish();
  EXPECT_EQ(ToHex(sha.Update("abc").Finish()), Hash("abc"));
}

TEST(Sha256Test, IntegersAreLittleEndian) {
  EXPECT_EQ(ToHex(Sha256().UpdateU64(0x0102030405060708).Finish()),
            Hash("\x08\x07\x06\x05\x04\x03\x02\x01"));
}

TEST(Sha256Test, FieldsAreUnambiguous) {
  EXPECT_NE(Sha256().UpdateField("ab").UpdateField("c").Finish(),
            Sha256().UpdateField("a").UpdateField("bc").Finish());
  EXPECT_NE(Sha256().UpdateField("").Finish(), Sha256().Finish());
  EXPECT_EQ(Sha256().UpdateField("ab").Finish(), Sha256().UpdateU64(2).Update("ab").Finish());
}

TEST(Sha256Test, Hex) {
  EXPECT_EQ(ToHex("\x00\x7f\xff\x0a", 4), "007fff0a");
  EXPECT_EQ(ToHex("", 0), "");
}

}  // namespace
}  // namespace oscarkv
