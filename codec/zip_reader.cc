#include "codec/zip_reader.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22;
constexpr uint16_t kFlagEncrypted = 1;
constexpr size_t kMaxNameBytes = 1024;

uint16_t U16(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}
uint32_t U32(const uint8_t* p) {
  return U16(p) | uint32_t{U16(p + 2)} << 16;
}

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat("zip archive: ", args...));
}

// Where the end-of-directory record starts: the last signature whose comment reaches exactly to the
// end of the image.
absl::StatusOr<size_t> FindEnd(absl::Span<const uint8_t> image) {
  if (image.size() < kEndBytes) return Bad("only ", image.size(), " bytes");
  const size_t last = image.size() - kEndBytes;
  const size_t first = last > 0xffff ? last - 0xffff : 0;
  for (size_t at = last + 1; at-- > first;) {
    const uint8_t* p = image.data() + at;
    if (U32(p) == kEndSignature && at + kEndBytes + U16(p + 20) == image.size()) return at;
  }
  return Bad("no end-of-directory record: not a zip file, or a truncated one");
}

absl::Status Inflate(absl::Span<const uint8_t> in, std::vector<uint8_t>* out) {
  z_stream z{};
  if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
    return absl::ResourceExhaustedError("zlib: inflateInit2 failed");
  // zlib wants a non-null output even for nothing, and one byte of room shows an entry that is
  // longer than it says.
  uint8_t spare = 0;
  z.next_in = const_cast<Bytef*>(in.data());
  z.avail_in = static_cast<uInt>(in.size());
  z.next_out = out->empty() ? &spare : out->data();
  z.avail_out = out->empty() ? 1 : static_cast<uInt>(out->size());
  const int rc = inflate(&z, Z_FINISH);
  const uint64_t produced = z.total_out, left = z.avail_in;
  inflateEnd(&z);
  if (rc != Z_STREAM_END || produced != out->size() || left != 0) {
    return Bad("deflated data is damaged, or its length is not the ", out->size(),
               " bytes of the directory");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ZipReader> ZipReader::Open(absl::Span<const uint8_t> image) {
  ZipReader reader(image);
  RETURN_IF_ERROR(reader.ReadDirectory());
  return reader;
}

absl::Status ZipReader::ReadDirectory() {
  ASSIGN_OR_RETURN(const size_t end, FindEnd(image_));
  const uint8_t* e = image_.data() + end;
  const uint16_t count = U16(e + 10);
  const uint64_t size = U32(e + 12), offset = U32(e + 16);
  if (count == 0xffff || size == 0xffffffff || offset == 0xffffffff) {
    return Bad(
        "needs zip64 fields for its directory, which are not supported (files up to 4 GiB do "
        "without)");
  }
  if (U16(e + 4) != 0 || U16(e + 6) != 0 || U16(e + 8) != count) return Bad("of several disks");
  if (offset + size > end)
    return Bad("directory at ", offset, " of ", size, " bytes overlaps its end record at ", end);

  directory_offset_ = offset;
  absl::Span<const uint8_t> left = image_.subspan(offset, size);
  for (uint32_t i = 0; i < count; ++i) {
    if (left.size() < kCentralBytes || U32(left.data()) != kCentralSignature) {
      return Bad("directory entry ", i, " of ", count, " is damaged");
    }
    const uint8_t* p = left.data();
    const size_t name_bytes = U16(p + 28);
    const size_t entry_bytes = kCentralBytes + name_bytes + U16(p + 30) + U16(p + 32);
    if (entry_bytes > left.size())
      return Bad("directory entry ", i, " reaches beyond the directory");
    if (name_bytes == 0 || name_bytes > kMaxNameBytes) {
      return Bad("directory entry ", i, " has a name of ", name_bytes, " bytes, 1 to ",
                 kMaxNameBytes, " are taken");
    }
    std::string name(reinterpret_cast<const char*>(p) + kCentralBytes, name_bytes);
    ZipEntry entry;
    entry.flags = U16(p + 8);
    entry.method = U16(p + 10);
    entry.crc32 = U32(p + 16);
    entry.compressed_bytes = U32(p + 20);
    entry.bytes = U32(p + 24);
    entry.header_offset = U32(p + 42);
    if (!entries_.emplace(std::move(name), entry).second)
      return Bad("directory entry ", i, " repeats a name");
    left.remove_prefix(entry_bytes);
  }
  if (!left.empty())
    return Bad("directory has ", left.size(), " bytes behind its ", count, " entries");
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const uint8_t>> ZipReader::RawBytes(const std::string& name,
                                                              const ZipEntry& entry) const {
  const uint64_t at = entry.header_offset;
  if (at + kLocalBytes > directory_offset_)
    return Bad("entry's local header at ", at, " lies outside the entries");
  const uint8_t* p = image_.data() + at;
  const size_t name_bytes = U16(p + 26);
  const uint64_t data = at + kLocalBytes + name_bytes + U16(p + 28);
  if (U32(p) != kLocalSignature || data > directory_offset_ || name_bytes != name.size() ||
      std::memcmp(p + kLocalBytes, name.data(), name_bytes) != 0) {
    return Bad("no local header of that name at ", at);
  }
  if (U16(p + 8) != entry.method || U16(p + 6) != entry.flags)
    return Bad("local header contradicts the directory");
  if (data + entry.compressed_bytes > directory_offset_) {
    return Bad("entry of ", entry.compressed_bytes, " bytes at ", data,
               " reaches into the directory");
  }
  return image_.subspan(data, entry.compressed_bytes);
}

absl::StatusOr<absl::Span<const uint8_t>> ZipReader::Read(const std::string& name,
                                                          uint64_t max_bytes,
                                                          std::vector<uint8_t>* buffer) const {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return Bad("has no entry ", absl::CHexEscape(name));
  const ZipEntry& entry = it->second;
  const auto annotate = [&](const absl::Status& s) {
    return absl::Status(s.code(),
                        absl::StrCat(s.message(), " (entry ", absl::CHexEscape(name), ")"));
  };
  if (entry.compressed_bytes == 0xffffffff || entry.bytes == 0xffffffff ||
      entry.header_offset == 0xffffffff) {
    return annotate(Bad("needs zip64 fields, which are not supported"));
  }
  if (entry.flags & kFlagEncrypted) return annotate(Bad("encrypted"));
  if (entry.method != 0 && entry.method != 8)
    return annotate(Bad("unknown compression ", entry.method));
  if (entry.bytes > max_bytes)
    return annotate(Bad(entry.bytes, " bytes, at most ", max_bytes, " are expected"));
  auto raw = RawBytes(name, entry);
  if (!raw.ok()) return annotate(raw.status());

  absl::Span<const uint8_t> bytes = *raw;
  if (entry.method == 8) {
    // Deflate cannot gain more than 1032 to 1: a greater claim is a lie, refused before it costs
    // memory.
    if (entry.bytes / 1032 > entry.compressed_bytes)
      return annotate(Bad("impossible compression ratio"));
    buffer->assign(entry.bytes, 0);
    if (absl::Status s = Inflate(*raw, buffer); !s.ok()) return annotate(s);
    bytes = *buffer;
  } else if (entry.compressed_bytes != entry.bytes) {
    return annotate(
        Bad("stored with ", entry.compressed_bytes, " bytes, but ", entry.bytes, " long"));
  }
  const auto crc = static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
  if (crc != entry.crc32) {
    return annotate(
        Bad(absl::StrFormat("CRC-32 is %08x, the directory says %08x", crc, entry.crc32)));
  }
  return bytes;
}

}  // namespace oscarkv
