// Lifecycle, admission, reads and scrubbing. What the writer's thread does is in
// ssd_tier_writer.cc.
#include "kvstore/tier/ssd_tier.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kvstore/tier/record.h"

namespace oscarkv {
namespace {

constexpr size_t kMostErasures = 65536;

}  // namespace

absl::StatusOr<std::unique_ptr<SsdTier>> SsdTier::Create(const SsdTierOptions& options,
                                                         std::unique_ptr<DiskStore> store,
                                                         const Clock* clock,
                                                         KvTierMetrics* metrics) {
  std::unique_ptr<SsdTier> tier(new SsdTier(options, std::move(store), clock, metrics));
  RETURN_IF_ERROR(tier->Adopt());
  tier->StartThreads();
  return tier;
}

SsdTier::SsdTier(const SsdTierOptions& options, std::unique_ptr<DiskStore> store,
                 const Clock* clock, KvTierMetrics* metrics)
    : options_(options),
      generation_bytes_(options.capacity / options.generations),
      store_(std::move(store)),
      clock_(clock),
      metrics_(metrics),
      budget_(options.write_rate, clock->Now()) {}

SsdTier::~SsdTier() {
  Shutdown(clock_->Now());
}

absl::Status SsdTier::Adopt() {
  uint64_t unreadable = 0;
  for (uint64_t generation : store_->Generations()) {
    uint64_t bytes = 0;
    // In order of age: of two copies the newer one counts.
    const absl::Status scanned =
        store_->ForEach(generation, [&](const TierKey& key, absl::string_view meta) {
          const absl::StatusOr<TierBlock> block = ParseTierRecord(key, meta);
          if (!block.ok()) {
            ++unreadable;
            return;
          }
          bytes += RecordBytes(block->size, meta.size());
          index_.Insert(key, {generation, block->size, block->kind, false});
        });
    if (absl::IsDataLoss(scanned)) {
      LogError("a part of the SSD tier is damaged and its blocks are lost",
               {{"node", options_.name}, {"error", std::string(scanned.message())}});
      index_.EraseGeneration(generation);
      RETURN_IF_ERROR(store_->DropGeneration(generation));
      ++unreadable;
      continue;
    }
    RETURN_IF_ERROR(scanned);
    MutexLock lock(mu_);
    generation_used_[generation] = bytes;
    used_bytes_ += bytes;
  }
  for (int k = 0; k < kNumBlockKinds; ++k) adopted_ += index_.kind_blocks(k);
  corrupt_ += unreadable;
  if (metrics_ != nullptr) metrics_->corrupt.With({"start"}).Add(unreadable);
  LogInfo("SSD tier is up", {{"node", options_.name},
                             {"capacity", FormatBytes(options_.capacity)},
                             {"adopted_blocks", absl::StrCat(adopted_.load())},
                             {"unreadable", absl::StrCat(unreadable)}});
  return absl::OkStatus();
}

void SsdTier::StartThreads() {
  threads_.emplace_back([this] { WriterLoop(); });
  for (int i = 0; i < options_.readers; ++i) threads_.emplace_back([this] { ReaderLoop(); });
  if (options_.scrub_rate > 0) threads_.emplace_back([this] { ScrubberLoop(); });
}

void SsdTier::Shutdown(Time until) {
  std::deque<ReadJob> cancelled;
  {
    MutexLock lock(mu_);
    if (stopping_) return;
    stopping_ = true;
    write_until_ = until;
    cancelled.swap(reads_);
    writer_wakes_.NotifyAll();
    readers_wake_.NotifyAll();
    scrubber_wakes_.NotifyAll();
  }
  for (const ReadJob& job : cancelled) job.done(absl::CancelledError("the node stops"), {});
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void SsdTier::WaitIdle() {
  MutexLock lock(mu_);
  ++idle_waiters_;
  writer_wakes_.NotifyAll();
  while (!queue_.empty() || !erasures_.empty() || !reads_.empty() || busy_ > 0 ||
         (unflushed_bytes_ > 0 && !failed_)) {
    idle_.Wait(mu_);
  }
  --idle_waiters_;
}

// --- Admission ---

void SsdTier::Drop(const char* reason, size_t blocks) {
  dropped_.fetch_add(blocks, std::memory_order_relaxed);
  if (metrics_ != nullptr) metrics_->drops.With({reason}).Add(blocks);
}

const char* SsdTier::WhyNot(const TierBlock& block, bool reused, Time now) {
  if (stopping_) return "shutdown";
  if (now < paused_until_) return "disk_error";
  if (RecordBytes(block.size, 0) > generation_bytes_) return "too_large";
  if (!reused && !options_.admit_all && !ghosts_.Take(block.key)) {
    ghosts_.Add(block.key);
    return "not_reused";
  }
  // What is queued is not counted: a tenant may overshoot by that.
  if (options_.tenant_quota > 0 &&
      index_.tenant_bytes(block.key.tenant) + block.size > options_.tenant_quota)
    return "quota";
  if (queued_bytes_ + block.size > options_.queue_bytes) return "queue_full";
  if (!budget_.Take(block.size, now)) return "write_rate";
  return nullptr;
}

void SsdTier::Offer(const TierBlock& block, bool reused, absl::Span<const uint8_t> bytes) {
  bool stored = index_.Find(block.key).has_value();
  const char* reason = nullptr;
  if (!stored) {
    MutexLock lock(mu_);
    const auto pending = pending_.find(block.key);
    stored = pending != pending_.end() && !pending->second->erased;
    if (!stored) {
      reason = WhyNot(block, reused, clock_->Now());
      if (reason == nullptr) queued_bytes_ += block.size;
    }
  }
  if (stored) {
    if (metrics_ != nullptr) metrics_->demotions.With({"present"}).Increment();
    return;
  }
  if (reason != nullptr) return Drop(reason);
  auto item = std::make_shared<Item>();
  item->block = block;
  item->bytes.reset(new uint8_t[block.size]);  // not zeroed
  std::memcpy(item->bytes.get(), bytes.data(), block.size);
  MutexLock lock(mu_);
  if (stopping_) {
    queued_bytes_ -= block.size;
    return Drop("shutdown");
  }
  pending_[block.key] = item;
  queue_.push_back(std::move(item));
  writer_wakes_.NotifyOne();
}

void SsdTier::Erase(const TierKey& key) {
  const std::optional<TierIndex::Entry> entry = index_.Erase(key, std::nullopt);
  MutexLock lock(mu_);
  if (const auto it = pending_.find(key); it != pending_.end()) {
    it->second->erased = true;
    pending_.erase(it);
  }
  // The disk learns of it later; should that be lost with the process, a cache has a block more.
  if (entry.has_value() && erasures_.size() < kMostErasures && !stopping_) {
    erasures_.emplace_back(key, entry->generation);
    writer_wakes_.NotifyOne();
  }
}

// --- Reads ---

bool SsdTier::Contains(const TierKey& key) const {
  if (index_.Find(key).has_value()) return true;
  MutexLock lock(mu_);
  return pending_.contains(key);
}

bool SsdTier::Touch(const TierKey& key) {
  if (index_.Use(key).has_value()) return true;
  MutexLock lock(mu_);
  return pending_.contains(key);
}

bool SsdTier::Fetch(const TierKey& key, Time until, FetchDone done) {
  const bool stored = index_.Use(key).has_value();
  MutexLock lock(mu_);
  if (stopping_ || (!stored && !pending_.contains(key))) return false;
  reads_.push_back({key, until, std::move(done)});
  readers_wake_.NotifyOne();
  return true;
}

void SsdTier::ReaderLoop() {
  for (;;) {
    ReadJob job;
    {
      MutexLock lock(mu_);
      while (reads_.empty() && !stopping_) readers_wake_.Wait(mu_);
      if (stopping_) return;
      job = std::move(reads_.front());
      reads_.pop_front();
      ++busy_;
    }
    Serve(job);
    MutexLock lock(mu_);
    --busy_;
    idle_.NotifyAll();
  }
}

void SsdTier::Serve(const ReadJob& job) {
  if (clock_->Now() > job.until)
    return job.done(absl::DeadlineExceededError("the disk was too busy"), {});
  ItemPtr item;
  {
    MutexLock lock(mu_);
    if (const auto it = pending_.find(job.key); it != pending_.end()) item = it->second;
  }
  absl::StatusOr<TierBlock> block = absl::NotFoundError("not on disk any more");
  absl::Span<const uint8_t> bytes;
  DiskRecord record;
  if (item != nullptr) {
    block = item->block;
    bytes = item->span();
  } else {
    // Twice: it may have been rescued into another generation meanwhile.
    for (int attempt = 0; attempt < 2 && absl::IsNotFound(block.status()); ++attempt) {
      const std::optional<TierIndex::Entry> entry = index_.Find(job.key);
      if (!entry.has_value()) break;
      const Time start = SteadyClock::Get()->Now();
      block = Load(job.key, entry->generation, &record);
      if (metrics_ != nullptr)
        metrics_->read_seconds->Observe(Seconds(SteadyClock::Get()->Now() - start));
      if (absl::IsDataLoss(block.status())) {
        OnDamage(job.key, entry->generation, block.status());
        if (metrics_ != nullptr) metrics_->corrupt.With({"read"}).Increment();
      } else if (absl::IsNotFound(block.status())) {
        index_.Erase(job.key, entry->generation);
      }
    }
    bytes = record.data;
  }
  if (block.ok()) {
    promoted_.fetch_add(1, std::memory_order_relaxed);
    if (metrics_ != nullptr) metrics_->promoted_bytes->Add(block->size);
  }
  job.done(block, bytes);
}

absl::StatusOr<TierBlock> SsdTier::Load(const TierKey& key, uint64_t generation,
                                        DiskRecord* record) {
  absl::StatusOr<DiskRecord> read = store_->Get(generation, key);
  if (!read.ok()) {
    if (metrics_ != nullptr && !absl::IsNotFound(read.status()) && !absl::IsDataLoss(read.status()))
      metrics_->errors.With({"read", CodeLabel(read.status())}).Increment();
    return read.status();
  }
  *record = *std::move(read);
  ASSIGN_OR_RETURN(TierBlock block, ParseTierRecord(key, record->meta));
  if (record->data.size() != block.size) {
    return absl::DataLossError(
        absl::StrCat("block of ", block.size, " bytes has ", record->data.size(), " on disk"));
  }
  RETURN_IF_ERROR(VerifySlices(*block.slices, record->data));
  return block;
}

void SsdTier::OnDamage(const TierKey& key, uint64_t generation, const absl::Status& status) {
  corrupt_.fetch_add(1, std::memory_order_relaxed);
  LogError(
      "corrupt block on disk, forgotten",
      {{"node", options_.name}, {"key", key.key.Hex()}, {"error", std::string(status.message())}});
  if (!index_.Erase(key, generation).has_value()) return;
  MutexLock lock(mu_);
  if (erasures_.size() < kMostErasures && !stopping_) {
    erasures_.emplace_back(key, generation);
    writer_wakes_.NotifyOne();
  }
}

// --- Scrubbing ---

size_t SsdTier::Scrub(uint64_t bytes_per_second) {
  size_t damaged = 0;
  for (uint64_t generation : store_->Generations()) {
    for (const TierKey& key : index_.KeysOf(generation, /*only_used=*/false)) {
      DiskRecord record;
      const absl::StatusOr<TierBlock> block = Load(key, generation, &record);
      if (absl::IsDataLoss(block.status())) {
        ++damaged;
        OnDamage(key, generation, block.status());
        if (metrics_ != nullptr) metrics_->corrupt.With({"scrub"}).Increment();
      }
      if (metrics_ != nullptr) metrics_->scrubbed_bytes->Add(record.data.size());
      MutexLock lock(mu_);
      if (bytes_per_second > 0 && !stopping_) {
        const double seconds =
            static_cast<double>(record.data.size()) / static_cast<double>(bytes_per_second);
        const Time next = SteadyClock::Get()->Now() + std::chrono::duration_cast<Duration>(
                                                          std::chrono::duration<double>(seconds));
        while (!stopping_ && scrubber_wakes_.WaitUntil(mu_, next)) {
        }
      }
      if (stopping_) return damaged;
    }
  }
  return damaged;
}

void SsdTier::ScrubberLoop() {
  constexpr Duration kBetweenPasses = std::chrono::minutes(1);
  for (;;) {
    {
      MutexLock lock(mu_);
      const Time next = SteadyClock::Get()->Now() + kBetweenPasses;
      while (!stopping_ && scrubber_wakes_.WaitUntil(mu_, next)) {
      }
      if (stopping_) return;
    }
    if (const size_t damaged = Scrub(options_.scrub_rate); damaged > 0) {
      LogError("scrubbing found corrupt blocks",
               {{"node", options_.name}, {"blocks", absl::StrCat(damaged)}});
    }
  }
}

// --- Figures ---

TierStats SsdTier::stats() const {
  TierStats s;
  s.capacity_bytes = options_.capacity;
  for (int k = 0; k < kNumBlockKinds; ++k) {
    s.kind_bytes[k] = index_.kind_bytes(k);
    s.kind_blocks[k] = index_.kind_blocks(k);
  }
  s.adopted_blocks = adopted_.load(std::memory_order_relaxed);
  s.demoted_blocks = demoted_.load(std::memory_order_relaxed);
  s.promoted_blocks = promoted_.load(std::memory_order_relaxed);
  s.dropped_blocks = dropped_.load(std::memory_order_relaxed);
  s.evicted_blocks = evicted_.load(std::memory_order_relaxed);
  s.corrupt_blocks = corrupt_.load(std::memory_order_relaxed);
  MutexLock lock(mu_);
  s.used_bytes = used_bytes_;
  s.queued_bytes = queued_bytes_;
  s.unflushed_bytes = unflushed_bytes_;
  s.writable = clock_->Now() >= paused_until_;
  return s;
}

}  // namespace oscarkv
