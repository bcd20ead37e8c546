#include "common/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace oscarkv {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) ? (c >> 1) ^ 0x82f63b78u : c >> 1;
    table[i] = c;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

#if defined(__x86_64__)
// The crc32 instruction has a latency of 3 cycles and a throughput of 1: three independent streams
// over thirds of a chunk keep it busy; ShiftBy appends `zeros` zero bytes to a CRC so that the
// three can be joined.
constexpr size_t kStride = 1024;  // bytes per stream and chunk

// x -> x * 2^(8 kStride) in the CRC's ring, as four byte-indexed tables.
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

ShiftTable MakeShiftTable(size_t zeros) {
  std::array<uint32_t, 32> column;
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t c = 1u << bit;
    for (size_t i = 0; i < zeros; ++i) c = kTable[c & 0xff] ^ (c >> 8);
    column[bit] = c;
  }
  ShiftTable table{};
  for (int byte = 0; byte < 4; ++byte) {
    for (uint32_t v = 0; v < 256; ++v) {
      uint32_t acc = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if (v >> bit & 1) acc ^= column[8 * byte + bit];
      }
      table[byte][v] = acc;
    }
  }
  return table;
}

uint32_t Shift(const ShiftTable& t, uint32_t c) {
  return t[0][c & 0xff] ^ t[1][c >> 8 & 0xff] ^ t[2][c >> 16 & 0xff] ^ t[3][c >> 24];
}

uint64_t Load64(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(const uint8_t* p, size_t n, uint32_t crc) {
  static const ShiftTable table = MakeShiftTable(kStride);
  uint64_t a = ~crc;
  while (n >= 3 * kStride) {
    uint64_t b = 0, c = 0;
    for (size_t i = 0; i < kStride; i += 8) {
      a = _mm_crc32_u64(a, Load64(p + i));
      b = _mm_crc32_u64(b, Load64(p + kStride + i));
      c = _mm_crc32_u64(c, Load64(p + 2 * kStride + i));
    }
    a = Shift(table, Shift(table, static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ c;
    p += 3 * kStride;
    n -= 3 * kStride;
  }
  for (; n >= 8; n -= 8, p += 8) a = _mm_crc32_u64(a, Load64(p));
  uint32_t r = static_cast<uint32_t>(a);
  for (; n > 0; --n, ++p) r = _mm_crc32_u8(r, *p);
  return ~r;
}
#endif

}  // namespace

uint32_t Crc32cPortable(const void* data, size_t size, uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) crc = kTable[(crc ^ p[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

uint32_t Crc32c(const void* data, size_t size, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return Crc32cSse42(static_cast<const uint8_t*>(data), size, crc);
#endif
  return Crc32cPortable(data, size, crc);
}

}  // namespace oscarkv
