// A reader of zip archives in memory, enough for what torch.save writes. The archive is untrusted.
//
// Taken: stored and deflated entries, data descriptors, comments, the zip64 end record that
// torch.save always adds. Refused with an error: encryption, other compression, archives of several
// disks, entries whose sizes or offsets need zip64's 64-bit fields.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace oscarkv {

struct ZipEntry {
  uint16_t method = 0;  // 0 stored, 8 deflated
  uint16_t flags = 0;
  uint32_t crc32 = 0;
  uint32_t compressed_bytes = 0;
  uint32_t bytes = 0;
  uint32_t header_offset = 0;
};

// Immutable after opening; refers to `image`, which must outlive it.
class ZipReader {
 public:
  // Reads the central directory. kInvalidArgument says what is wrong and where.
  static absl::StatusOr<ZipReader> Open(absl::Span<const uint8_t> image);

  const std::map<std::string, ZipEntry, std::less<>>& entries() const { return entries_; }

  // The bytes of an entry after checking its local header and CRC-32: a view of the image when
  // stored, else of *buffer, which is replaced. kInvalidArgument: damaged, or larger than max_bytes
  // (looked at before anything is allocated).
  absl::StatusOr<absl::Span<const uint8_t>> Read(const std::string& name, uint64_t max_bytes,
                                                 std::vector<uint8_t>* buffer) const;

 private:
  explicit ZipReader(absl::Span<const uint8_t> image) : image_(image) {}
  absl::Status ReadDirectory();
  absl::StatusOr<absl::Span<const uint8_t>> RawBytes(const std::string& name,
                                                     const ZipEntry& entry) const;

  absl::Span<const uint8_t> image_;
  uint64_t directory_offset_ = 0;  // entries' data end before it
  std::map<std::string, ZipEntry, std::less<>> entries_;
};

}  // namespace oscarkv
