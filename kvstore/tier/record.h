// The meta record of a block on disk: everything but its bytes. docs/block_format.md describes it.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

// Version 1 had no placement key; its records are still read.
inline constexpr uint32_t kTierRecordVersion = 2;

// What a record takes on disk: its two keys and what the store adds to them are counted as 256
// bytes.
inline uint64_t RecordBytes(uint64_t data_bytes, uint64_t meta_bytes) {
  return data_bytes + meta_bytes + 256;
}
inline constexpr uint64_t kUsualMetaBytes = 1024;  // where a record is not at hand

std::string EncodeTierRecord(const TierBlock& block);

// `key` is where the record was found. kDataLoss: its checksum differs, it belongs to another key,
// or its fields contradict each other; kFailedPrecondition: another version.
absl::StatusOr<TierBlock> ParseTierRecord(const TierKey& key, absl::string_view meta);

// What a slice table may say of a block of `size` bytes: 1..kMaxSlicesPerBlock slices, none empty,
// that add up to it.
absl::Status CheckSliceTable(const kv::SliceTable& slices, uint64_t size);
// kDataLoss names the first slice whose checksum differs. The table fits the bytes.
absl::Status VerifySlices(const kv::SliceTable& slices, absl::Span<const uint8_t> bytes);

}  // namespace oscarkv
