// A DiskStore in memory with the failures of a disk: a MemDisk outlives the stores that are opened
// on it, as a disk outlives processes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "kvstore/tier/disk_store.h"

namespace oscarkv {

// Thread-safe.
class MemDisk {
 public:
  std::unique_ptr<DiskStore> Open();

  // What a process that dies loses: everything that no Flush covered.
  void LoseUnflushed();
  // Puts (and flushes) fail with this until OK is set.
  void FailWrites(absl::Status status);
  void FailReads(absl::Status status);
  // While held, writes resp. reads do not return.
  void HoldWrites(bool hold);
  void HoldReads(bool hold);
  // Returns when a held write resp. read stands still.
  void WaitHeldWrite();
  void WaitHeldRead();
  // Changes a byte of the data resp. of the meta of every copy of the block.
  void CorruptData(const TierKey& key);
  void CorruptMeta(const TierKey& key);

  size_t records() const;
  uint64_t written_bytes() const;  // in all, by Put
  uint64_t stored_bytes() const;   // data only
  uint64_t most_stored_bytes() const;
  std::vector<uint64_t> generations() const;

 private:
  friend class MemDiskStore;
  struct Record {
    std::string meta;
    std::string data;
    bool flushed = false;
  };
  struct KeyLess {
    bool operator()(const TierKey& a, const TierKey& b) const {
      return std::tie(a.tenant, a.key.bytes) < std::tie(b.tenant, b.key.bytes);
    }
  };
  using Generation = std::map<TierKey, Record, KeyLess>;
  uint64_t StoredLocked() const REQUIRES(mu_);
  void Pass(bool* hold, int* held) REQUIRES(mu_);

  mutable Mutex mu_;
  CondVar changed_;
  std::map<uint64_t, Generation> generations_ GUARDED_BY(mu_);
  uint64_t next_generation_ GUARDED_BY(mu_) = 1;
  absl::Status write_status_ GUARDED_BY(mu_), read_status_ GUARDED_BY(mu_);
  bool hold_writes_ GUARDED_BY(mu_) = false, hold_reads_ GUARDED_BY(mu_) = false;
  int held_writes_ GUARDED_BY(mu_) = 0, held_reads_ GUARDED_BY(mu_) = 0;
  uint64_t written_ GUARDED_BY(mu_) = 0, most_stored_ GUARDED_BY(mu_) = 0;
};

}  // namespace oscarkv
