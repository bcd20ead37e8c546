#include "kvstore/tier/record.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// Fields in the byte order of the machine: a disk is read by the machine that wrote it, and the
// version would differ in the other order.
struct Head {
  uint32_t version;
  uint32_t crc32c;  // of the key and of everything behind this field
  uint64_t size;
  uint8_t parent[32];
  uint32_t slices;
  uint16_t tenant_bytes;
  uint8_t kind;
  uint8_t zero;
};
static_assert(sizeof(Head) == 56);
constexpr size_t kCheckedFrom = 8;
constexpr size_t kPlacementBytes = 32;  // behind Head since version 2

uint32_t Checksum(const TierKey& key, absl::string_view meta) {
  uint32_t crc = Crc32c(key.tenant.data(), key.tenant.size());
  crc = Crc32c(key.key.bytes.data(), key.key.bytes.size(), crc);
  return Crc32c(meta.data() + kCheckedFrom, meta.size() - kCheckedFrom, crc);
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("record on disk: ", what));
}

}  // namespace

std::string EncodeTierRecord(const TierBlock& block) {
  const size_t n = block.slices->lengths.size();
  Head head{};
  head.version = kTierRecordVersion;
  head.size = block.size;
  std::memcpy(head.parent, block.parent.bytes.data(), sizeof(head.parent));
  head.slices = n;
  head.tenant_bytes = block.tenant.size();
  head.kind = static_cast<uint8_t>(block.kind);
  std::string out(sizeof(head), '\0');
  out.append(reinterpret_cast<const char*>(block.placement.bytes.data()), kPlacementBytes);
  out.append(reinterpret_cast<const char*>(block.slices->lengths.data()), n * 8);
  out.append(reinterpret_cast<const char*>(block.slices->crc32c.data()), n * 4);
  out.append(block.tenant);
  std::memcpy(out.data(), &head, sizeof(head));
  head.crc32c = Checksum(block.key, out);
  std::memcpy(out.data(), &head, sizeof(head));
  return out;
}

absl::StatusOr<TierBlock> ParseTierRecord(const TierKey& key, absl::string_view meta) {
  Head head;
  if (meta.size() < sizeof(head)) return Damaged(absl::StrCat("only ", meta.size(), " bytes"));
  std::memcpy(&head, meta.data(), sizeof(head));
  if (head.version < 1 || head.version > kTierRecordVersion) {
    return absl::FailedPreconditionError(absl::StrCat("record on disk has version ", head.version,
                                                      ", expected 1 or ", kTierRecordVersion));
  }
  if (head.crc32c != Checksum(key, meta)) return Damaged("its checksum differs");
  const size_t slices_at = sizeof(head) + (head.version == 1 ? 0 : kPlacementBytes);
  const uint64_t expected = slices_at + uint64_t{head.slices} * 12 + head.tenant_bytes;
  if (meta.size() != expected || head.slices > kv::kMaxSlicesPerBlock ||
      head.tenant_bytes > kv::kMaxNameLength || head.kind < 1 || head.kind > kNumBlockKinds) {
    return Damaged(absl::StrCat(meta.size(), " bytes with ", head.slices, " slices, kind ",
                                head.kind, ": expected ", expected, " bytes"));
  }
  TierBlock block;
  block.key = key;
  std::memcpy(block.parent.bytes.data(), head.parent, sizeof(head.parent));
  if (head.version > 1)
    std::memcpy(block.placement.bytes.data(), meta.data() + sizeof(head), kPlacementBytes);
  block.kind = static_cast<BlockKind>(head.kind);
  block.size = head.size;
  auto slices = std::make_shared<kv::SliceTable>();
  slices->lengths.resize(head.slices);
  slices->crc32c.resize(head.slices);
  const char* at = meta.data() + slices_at;
  std::memcpy(slices->lengths.data(), at, head.slices * 8);
  std::memcpy(slices->crc32c.data(), at + head.slices * 8, head.slices * 4);
  if (const absl::Status fits = CheckSliceTable(*slices, block.size); !fits.ok())
    return Damaged(std::string(fits.message()));
  block.slices = std::move(slices);
  block.tenant.assign(at + head.slices * 12, head.tenant_bytes);
  if (DigestOfTenant(block.tenant) != key.tenant) return Damaged("it is another tenant's");
  return block;
}

absl::Status CheckSliceTable(const kv::SliceTable& slices, uint64_t size) {
  if (slices.lengths.size() != slices.crc32c.size() || slices.lengths.empty() ||
      slices.lengths.size() > kv::kMaxSlicesPerBlock) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slice table with ", slices.lengths.size(), " lengths and ", slices.crc32c.size(),
        " checksums: expected as many, 1..", kv::kMaxSlicesPerBlock));
  }
  uint64_t sum = 0;
  for (uint64_t length : slices.lengths) {
    if (length == 0 || length > size - sum) {
      return absl::InvalidArgumentError(
          absl::StrCat("slice of ", length, " bytes at ", sum, " of a block of ", size));
    }
    sum += length;
  }
  if (sum == size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the slices cover ", sum, " of ", size, " bytes"));
}

absl::Status VerifySlices(const kv::SliceTable& slices, absl::Span<const uint8_t> bytes) {
  const uint8_t* at = bytes.data();
  for (size_t i = 0; i < slices.lengths.size(); ++i) {
    if (Crc32c(at, slices.lengths[i]) != slices.crc32c[i]) {
      return absl::DataLossError(
          absl::StrCat("slice ", i, " of ", slices.lengths[i], " bytes: its checksum differs"));
    }
    at += slices.lengths[i];
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
