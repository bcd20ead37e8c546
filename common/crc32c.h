// CRC32C (Castagnoli, reflected polynomial 0x82f63b78, initial and final inversion): the checksum
// of every stored slice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oscarkv {

// The CRC of `size` bytes appended to data whose CRC is `crc` (0 for none). Uses SSE4.2 where the
// CPU has it.
uint32_t Crc32c(const void* data, size_t size, uint32_t crc = 0);

// The table-driven version, for the tests of the other.
uint32_t Crc32cPortable(const void* data, size_t size, uint32_t crc = 0);

}  // namespace oscarkv
