#include "common/crc32c.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

std::vector<uint8_t> Pattern(size_t n) {
  std::vector<uint8_t> data(n);
  uint32_t state = 12345;
  for (uint8_t& b : data) b = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  return data;
}

// The vectors of RFC 3720, B.4, and the customary check value.
TEST(Crc32cTest, KnownVectors) {
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending.push_back(static_cast<char>(i));
    descending.push_back(static_cast<char>(31 - i));
  }
  const std::vector<std::pair<std::string, uint32_t>> vectors = {
      {"", 0},
      {"123456789", 0xe3069283},
      {std::string(32, '\0'), 0x8a9136aa},
      {std::string(32, '\xff'), 0x62a8ab43},
      {ascending, 0x46dd794e},
      {descending, 0x113fdb5c},
  };
  for (const auto& [data, crc] : vectors) {
    EXPECT_EQ(Crc32cPortable(data.data(), data.size()), crc);
    EXPECT_EQ(Crc32c(data.data(), data.size()), crc);
  }
}

// Every length around the three-stream chunks of 3072 bytes and the eight-byte steps, at every
// alignment.
TEST(Crc32cTest, FastAgreesWithPortable) {
  const std::vector<uint8_t> data = Pattern(10000);
  for (size_t n = 0; n < 300; ++n) {
    ASSERT_EQ(Crc32c(data.data(), n), Crc32cPortable(data.data(), n)) << n;
  }
  for (const size_t base : {size_t{3072}, size_t{6144}, size_t{9216}}) {
    for (size_t n = base - 10; n < base + 10; ++n) {
      for (size_t offset = 0; offset < 16; ++offset) {
        ASSERT_EQ(Crc32c(data.data() + offset, n), Crc32cPortable(data.data() + offset, n))
            << n << " at " << offset;
      }
    }
  }
}

TEST(Crc32cTest, PiecesGiveTheWhole) {
  const std::vector<uint8_t> data = Pattern(7000);
  const uint32_t whole = Crc32c(data.data(), data.size());
  for (const size_t cut : {0u, 1u, 7u, 8u, 1023u, 3072u, 3073u, 6999u, 7000u}) {
    const uint32_t first = Crc32c(data.data(), cut);
    EXPECT_EQ(Crc32c(data.data() + cut, data.size() - cut, first), whole) << cut;
    EXPECT_EQ(Crc32cPortable(data.data() + cut, data.size() - cut, first), whole) << cut;
  }
}

TEST(Crc32cTest, EveryBitCounts) {
  std::vector<uint8_t> data = Pattern(4000);
  const uint32_t crc = Crc32c(data.data(), data.size());
  for (size_t i = 0; i < data.size(); i += 13) {
    data[i] ^= 0x10;
    EXPECT_NE(Crc32c(data.data(), data.size()), crc) << i;
    data[i] ^= 0x10;
  }
}

}  // namespace
}  // namespace oscarkv
