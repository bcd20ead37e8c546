// The writer's thread of SsdTier: queue to disk, room, flushes, failures.
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kvstore/tier/record.h"
#include "kvstore/tier/ssd_tier.h"

namespace oscarkv {

void SsdTier::WriterLoop() {
  for (;;) {
    const Task task = NextTask();
    switch (task.work) {
      case Work::kStop:
        return;
      case Work::kWrite:
        Write(task.item);
        break;
      case Work::kErase:
        // Of a generation that is gone: nothing to do. Any other failure shows in the next write.
        store_->Erase(task.erasure.second, task.erasure.first).IgnoreError();
        break;
      case Work::kFlush:
        if (const absl::Status flushed = FlushToDisk(); !flushed.ok())
          OnWriteError("flush", flushed);
        break;
    }
    MutexLock lock(mu_);
    --busy_;
    idle_.NotifyAll();
  }
}

SsdTier::Task SsdTier::NextTask() {
  Task task;
  MutexLock lock(mu_);
  for (;;) {
    if (stopping_ && clock_->Now() >= write_until_) DropQueue("shutdown");
    const bool may_flush = unflushed_bytes_ > 0 && !failed_;
    // NOLINTNEXTLINE(bugprone-branch-clone): the order of the branches is their priority
    if (may_flush && SteadyClock::Get()->Now() >= flush_due_) {
      task.work = Work::kFlush;
    } else if (!erasures_.empty()) {  // before a later write of the same block
      task.work = Work::kErase;
      task.erasure = erasures_.front();
      erasures_.pop_front();
    } else if (!queue_.empty()) {
      task.work = Work::kWrite;
      task.item = std::move(queue_.front());
      queue_.pop_front();
    } else if (may_flush && (stopping_ || idle_waiters_ > 0)) {
      task.work = Work::kFlush;
    } else if (stopping_) {
      task.work = Work::kStop;
    } else {
      if (may_flush) {
        writer_wakes_.WaitUntil(mu_, flush_due_);
      } else {
        writer_wakes_.Wait(mu_);
      }
      continue;
    }
    if (task.work != Work::kStop) ++busy_;
    return task;
  }
}

void SsdTier::Write(const ItemPtr& item) {
  bool erased, failed;
  {
    MutexLock lock(mu_);
    erased = item->erased;
    failed = failed_;
  }
  absl::Status status;
  if (!erased) {
    if (failed) status = FlushToDisk();  // the first after a pause: is the disk well again?
    if (status.ok()) status = WriteToDisk(item->block, item->span());
  }
  {
    MutexLock lock(mu_);
    queued_bytes_ -= item->block.size;
    const auto it = pending_.find(item->block.key);
    if (it != pending_.end() && it->second == item) pending_.erase(it);
    if (item->erased && !erased && status.ok()) {  // while it was written
      if (const auto entry = index_.Erase(item->block.key, std::nullopt); entry.has_value())
        erasures_.emplace_back(item->block.key, entry->generation);
    }
  }
  if (erased) return;
  if (!status.ok()) {
    Drop("disk_error");
    return OnWriteError("write", status);
  }
  demoted_.fetch_add(1, std::memory_order_relaxed);
  if (metrics_ == nullptr) return;
  metrics_->demotions.With({"written"}).Increment();
  metrics_->demoted_bytes->Add(item->block.size);
}

absl::Status SsdTier::WriteToDisk(const TierBlock& block, absl::Span<const uint8_t> bytes) {
  const std::string meta = EncodeTierRecord(block);
  RETURN_IF_ERROR(MakeRoom(RecordBytes(bytes.size(), meta.size())));
  return Append(block, meta, bytes, std::nullopt);
}

absl::Status SsdTier::Append(const TierBlock& block, const std::string& meta,
                             absl::Span<const uint8_t> bytes, std::optional<uint64_t> from) {
  uint64_t generation;
  {
    MutexLock lock(mu_);
    generation = generation_used_.rbegin()->first;
  }
  const Time start = SteadyClock::Get()->Now();
  RETURN_IF_ERROR(store_->Put(generation, block.key, meta, bytes));
  if (metrics_ != nullptr)
    metrics_->write_seconds->Observe(Seconds(SteadyClock::Get()->Now() - start));
  const TierIndex::Entry entry{generation, block.size, block.kind, false};
  bool erased = false;
  if (from.has_value()) {
    erased = !index_.Move(block.key, *from, entry);
  } else {
    index_.Insert(block.key, entry);
  }
  const uint64_t record = RecordBytes(bytes.size(), meta.size());
  MutexLock lock(mu_);
  if (erased) erasures_.emplace_back(block.key, generation);
  generation_used_[generation] += record;
  used_bytes_ += record;
  if (unflushed_bytes_ == 0) flush_due_ = SteadyClock::Get()->Now() + options_.flush_every;
  unflushed_bytes_ += record;
  return absl::OkStatus();
}

absl::Status SsdTier::MakeRoom(uint64_t bytes) {
  bool full;
  {
    MutexLock lock(mu_);
    full =
        generation_used_.empty() || generation_used_.rbegin()->second + bytes > generation_bytes_;
  }
  if (full) {
    ASSIGN_OR_RETURN(const uint64_t generation, store_->NewGeneration());
    MutexLock lock(mu_);
    generation_used_[generation] = 0;
  }
  for (;;) {
    {
      MutexLock lock(mu_);
      // Half a generation is kept free for what DropOldest rescues.
      if (used_bytes_ + bytes + generation_bytes_ / 2 <= options_.capacity ||
          generation_used_.size() < 2)
        return absl::OkStatus();
    }
    RETURN_IF_ERROR(DropOldest());
  }
}

absl::Status SsdTier::DropOldest() {
  uint64_t oldest;
  {
    MutexLock lock(mu_);
    oldest = generation_used_.begin()->first;
  }
  Rescue(oldest);
  const size_t gone = index_.EraseGeneration(oldest);
  evicted_.fetch_add(gone, std::memory_order_relaxed);
  if (metrics_ != nullptr) metrics_->evictions.With({"dropped"}).Add(gone);
  RETURN_IF_ERROR(store_->DropGeneration(oldest));
  MutexLock lock(mu_);
  used_bytes_ -= generation_used_[oldest];
  generation_used_.erase(oldest);
  return absl::OkStatus();
}

void SsdTier::Rescue(uint64_t generation) {
  uint64_t rescued = 0;
  for (const TierKey& key : index_.KeysOf(generation, /*only_used=*/true)) {
    const std::optional<TierIndex::Entry> entry = index_.Find(key);
    if (!entry.has_value() || entry->generation != generation) continue;
    if (rescued + RecordBytes(entry->size, kUsualMetaBytes) > generation_bytes_ / 2) return;
    {
      MutexLock lock(mu_);
      if (stopping_ || failed_ || !budget_.Take(entry->size, clock_->Now())) return;
    }
    DiskRecord record;
    const absl::StatusOr<TierBlock> block = Load(key, generation, &record);
    if (absl::IsDataLoss(block.status())) {
      OnDamage(key, generation, block.status());
      if (metrics_ != nullptr) metrics_->corrupt.With({"read"}).Increment();
    }
    if (!block.ok()) continue;
    if (!Append(*block, record.meta, record.data, generation).ok())
      return;  // the next write says why
    rescued += RecordBytes(block->size, record.meta.size());
    if (metrics_ != nullptr) metrics_->evictions.With({"rescued"}).Increment();
  }
}

absl::Status SsdTier::FlushToDisk() {
  const Time start = SteadyClock::Get()->Now();
  RETURN_IF_ERROR(store_->Flush());
  if (metrics_ != nullptr)
    metrics_->flush_seconds->Observe(Seconds(SteadyClock::Get()->Now() - start));
  MutexLock lock(mu_);
  if (failed_) LogInfo("SSD tier: the disk takes blocks again", {{"node", options_.name}});
  unflushed_bytes_ = 0;
  failed_ = false;
  return absl::OkStatus();
}

void SsdTier::OnWriteError(const char* op, const absl::Status& status) {
  if (metrics_ != nullptr) metrics_->errors.With({op, CodeLabel(status)}).Increment();
  bool several, first;
  {
    MutexLock lock(mu_);
    first = !failed_;
    failed_ = true;
    paused_until_ = clock_->Now() + options_.pause_after_error;
    DropQueue("disk_error");
    several = generation_used_.size() > 1;
  }
  if (first) {
    LogError("SSD tier: writing failed; it takes no blocks until the disk is well again",
             {{"node", options_.name},
              {"op", op},
              {"error", std::string(status.message())},
              {"next_try_in", FormatDuration(options_.pause_after_error)}});
  }
  // Somebody else may have filled the disk: the oldest blocks are worth less than a tier that goes
  // on. Should this fail as well, the pause stands.
  if (absl::IsResourceExhausted(status) && several) DropOldest().IgnoreError();
}

void SsdTier::DropQueue(const char* reason) {
  if (queue_.empty()) return;
  for (const ItemPtr& item : queue_) {
    queued_bytes_ -= item->block.size;
    const auto it = pending_.find(item->block.key);
    if (it != pending_.end() && it->second == item) pending_.erase(it);
  }
  Drop(reason, queue_.size());
  queue_.clear();
}

}  // namespace oscarkv
