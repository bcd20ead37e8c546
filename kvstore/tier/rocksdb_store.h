// DiskStore on RocksDB: a column family per generation; the bytes of blocks in blob files, so that
// they are written once and compactions move only their keys. The only home of RocksDB's headers.
//
// No write-ahead log: it would write every byte twice. What no Flush covered is lost with the
// process, as a whole record; the kernel has what was flushed on the disk (fsync).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvstore/tier/disk_store.h"

namespace oscarkv {

struct RocksDbStoreOptions {
  std::string path;                              // a folder of its own; made if missing
  uint64_t memtable_bytes = uint64_t{64} << 20;  // memory per write buffer; up to three are in use
  // Free space below which nothing is written (kResourceExhausted): RocksDB 7.8 as Debian builds it
  // ends the process when its own bookkeeping meets a full disk, so it is not let come to that.
  uint64_t reserve_bytes = uint64_t{4} << 20;
};

// kInvalidArgument: the folder holds something else; kFailedPrecondition: another process has it
// open; kUnavailable: it cannot be made, read or written. Content that is damaged so that it cannot
// be opened is thrown away with an error in the log: it is a cache.
absl::StatusOr<std::unique_ptr<DiskStore>> OpenRocksDbStore(const RocksDbStoreOptions& options);

}  // namespace oscarkv
