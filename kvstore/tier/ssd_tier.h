// The tier on a local disk. What it promises: memory never waits for the disk, the disk never holds
// more than its capacity or takes more bytes a second than it may, and no damaged byte gets out.
//
// Demotion: Offer copies a block into a bounded queue, or drops it and counts why; one thread
// writes the queue. Every few seconds it flushes: what was not flushed is lost if the process dies.
//
// Room: records go into the newest of 16 or so generations. When the capacity is reached the oldest
// generation goes as a whole; those of its blocks that were used since they were written are
// written once more first (up to half a generation, and within the write rate): FIFO with a second
// chance.
//
// A promoted block stays on disk: when memory gives it up again nothing has to be written.
//
// After a failed write nothing is offered to the disk for a while; reads go on. A full disk costs
// the oldest generation, in the hope that it makes room.
//
// Clock: rates, pauses and deadlines follow the injected clock; the interval between flushes is
// real time.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "kvstore/metrics.h"
#include "kvstore/tier/admission.h"
#include "kvstore/tier/disk_store.h"
#include "kvstore/tier/tier.h"
#include "kvstore/tier/tier_index.h"

namespace oscarkv {

struct SsdTierOptions {
  std::string name = "node";         // in logs
  uint64_t capacity = 0;             // bytes of records on disk
  uint64_t write_rate = 0;           // bytes per second; 0: no limit
  bool admit_all = false;            // else only blocks that were used since they were put
  uint64_t tenant_quota = 0;         // bytes of one tenant; 0: none
  uint64_t queue_bytes = 128 << 20;  // of blocks waiting to be written
  uint64_t scrub_rate = 0;           // bytes per second; 0: no scrubbing
  int readers = 4;                   // threads
  int generations = 16;
  Duration flush_every = std::chrono::seconds(2);
  Duration pause_after_error = std::chrono::seconds(10);
};

class SsdTier final : public Tier {
 public:
  // Adopts what the store holds. `clock` and `metrics` (may be null) outlive the tier. The status
  // is the store's.
  static absl::StatusOr<std::unique_ptr<SsdTier>> Create(const SsdTierOptions& options,
                                                         std::unique_ptr<DiskStore> store,
                                                         const Clock* clock,
                                                         KvTierMetrics* metrics);
  ~SsdTier() override;

  void Offer(const TierBlock& block, bool reused, absl::Span<const uint8_t> bytes) override;
  bool Contains(const TierKey& key) const override;
  bool Touch(const TierKey& key) override;
  bool Fetch(const TierKey& key, Time until, FetchDone done) override;
  void Erase(const TierKey& key) override;
  TierStats stats() const override;
  void Shutdown(Time until) override;

  // Returns when nothing is queued, being written or being read, and all is flushed.
  void WaitIdle();
  // Reads and checks every block once, at `bytes_per_second` (0: without a pause). Returns how many
  // were damaged; they are gone.
  size_t Scrub(uint64_t bytes_per_second);

 private:
  struct Item {
    TierBlock block;
    std::unique_ptr<uint8_t[]> bytes;
    bool erased = false;  // under mu_: by Erase, since it was queued
    absl::Span<const uint8_t> span() const { return {bytes.get(), block.size}; }
  };
  using ItemPtr = std::shared_ptr<Item>;
  struct ReadJob {
    TierKey key;
    Time until;
    FetchDone done;
  };

  SsdTier(const SsdTierOptions& options, std::unique_ptr<DiskStore> store, const Clock* clock,
          KvTierMetrics* metrics);
  absl::Status Adopt();
  void StartThreads();

  // Demotion.
  // Null: the block may be queued; else the reason to drop it.
  const char* WhyNot(const TierBlock& block, bool reused, Time now) REQUIRES(mu_);
  void Drop(const char* reason, size_t blocks = 1);
  // Demotion, on the writer's thread (ssd_tier_writer.cc).
  enum class Work { kWrite, kErase, kFlush, kStop };
  struct Task {
    Work work = Work::kStop;
    ItemPtr item;
    std::pair<TierKey, uint64_t> erasure;
  };
  void WriterLoop();
  Task NextTask();
  void Write(const ItemPtr& item);
  absl::Status WriteToDisk(const TierBlock& block, absl::Span<const uint8_t> bytes);
  // `from`: the generation that it is rescued from; a block that is erased meanwhile stays so.
  absl::Status Append(const TierBlock& block, const std::string& meta,
                      absl::Span<const uint8_t> bytes, std::optional<uint64_t> from);
  absl::Status FlushToDisk();
  void OnWriteError(const char* op, const absl::Status& status);
  void DropQueue(const char* reason) REQUIRES(mu_);
  absl::Status MakeRoom(uint64_t bytes);
  absl::Status DropOldest();
  void Rescue(uint64_t generation);

  // Promotion.
  void ReaderLoop();
  void Serve(const ReadJob& job);
  absl::StatusOr<TierBlock> Load(const TierKey& key, uint64_t generation, DiskRecord* record);
  void OnDamage(const TierKey& key, uint64_t generation, const absl::Status& status);
  void ScrubberLoop();

  const SsdTierOptions options_;
  const uint64_t generation_bytes_;
  const std::unique_ptr<DiskStore> store_;
  const Clock* const clock_;
  KvTierMetrics* const metrics_;
  TierIndex index_;

  mutable Mutex mu_;
  CondVar writer_wakes_, readers_wake_, scrubber_wakes_, idle_;
  bool stopping_ GUARDED_BY(mu_) = false;
  Time write_until_ GUARDED_BY(mu_){};  // once stopping
  std::deque<ItemPtr> queue_ GUARDED_BY(mu_);
  absl::flat_hash_map<TierKey, ItemPtr> pending_ GUARDED_BY(mu_);  // queued or being written
  uint64_t queued_bytes_ GUARDED_BY(mu_) = 0;
  std::deque<std::pair<TierKey, uint64_t>> erasures_ GUARDED_BY(mu_);
  std::deque<ReadJob> reads_ GUARDED_BY(mu_);
  int idle_waiters_ GUARDED_BY(mu_) = 0;
  int busy_ GUARDED_BY(mu_) = 0;  // threads that write or read now
  WriteBudget budget_ GUARDED_BY(mu_);
  Ghosts ghosts_ GUARDED_BY(mu_);
  Time paused_until_ GUARDED_BY(mu_){};
  bool failed_ GUARDED_BY(mu_) = false;  // the last write did
  uint64_t unflushed_bytes_ GUARDED_BY(mu_) = 0;
  Time flush_due_ GUARDED_BY(mu_) = Time::max();                  // real time
  std::map<uint64_t, uint64_t> generation_used_ GUARDED_BY(mu_);  // bytes on disk, oldest first
  uint64_t used_bytes_ GUARDED_BY(mu_) = 0;                       // their sum

  std::atomic<uint64_t> adopted_{0}, demoted_{0}, promoted_{0}, dropped_{0}, evicted_{0},
      corrupt_{0};
  std::vector<std::thread> threads_;
};

}  // namespace oscarkv
