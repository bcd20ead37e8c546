// Where SsdTier keeps its records: a store of (generation, key) -> (meta, data) on one disk.
//
// Generations make eviction cheap. A record is written once, into the newest generation; the oldest
// one is dropped as a whole, which gives its files back to the file system without reading or
// rewriting anything. So a byte that is stored is written once, and a capacity holds exactly.
//
// Calls block for as long as the disk takes. Thread-safe, except that NewGeneration,
// DropGeneration, Put and Flush come from one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

// What Get found. `data` points into memory that `owner` keeps.
struct DiskRecord {
  std::string meta;
  absl::Span<const uint8_t> data;
  std::shared_ptr<void> owner;
};

// Errors: kNotFound, kDataLoss (the record is damaged), kResourceExhausted (the disk is full),
// kUnavailable (any other failure of the disk).
class DiskStore {
 public:
  virtual ~DiskStore() = default;

  // Numbers grow; those of an earlier process are there after a restart.
  virtual absl::StatusOr<uint64_t> NewGeneration() = 0;
  virtual absl::Status DropGeneration(uint64_t generation) = 0;
  virtual std::vector<uint64_t> Generations() const = 0;  // oldest first

  // Durable after the next Flush, or never visible again if the process dies before: both parts or
  // none.
  virtual absl::Status Put(uint64_t generation, const TierKey& key, absl::string_view meta,
                           absl::Span<const uint8_t> data) = 0;
  virtual absl::StatusOr<DiskRecord> Get(uint64_t generation, const TierKey& key) = 0;
  virtual absl::Status Erase(uint64_t generation, const TierKey& key) = 0;
  // Also tries to leave the state of failure that an error of the disk left behind.
  virtual absl::Status Flush() = 0;

  // All records of a generation, without reading their data.
  using Visitor = std::function<void(const TierKey& key, absl::string_view meta)>;
  virtual absl::Status ForEach(uint64_t generation, const Visitor& visit) = 0;
};

}  // namespace oscarkv
