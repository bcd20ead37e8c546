#include "tests/fakes/mem_disk_store.h"

#include <algorithm>
#include <tuple>

#include "common/status_macros.h"

namespace oscarkv {

class MemDiskStore final : public DiskStore {
 public:
  explicit MemDiskStore(MemDisk* disk) : disk_(*disk) {}

  absl::StatusOr<uint64_t> NewGeneration() override {
    MutexLock lock(disk_.mu_);
    RETURN_IF_ERROR(disk_.write_status_);
    disk_.generations_[disk_.next_generation_];
    return disk_.next_generation_++;
  }
  absl::Status DropGeneration(uint64_t generation) override {
    MutexLock lock(disk_.mu_);
    disk_.generations_.erase(generation);
    return absl::OkStatus();
  }
  std::vector<uint64_t> Generations() const override { return disk_.generations(); }

  absl::Status Put(uint64_t generation, const TierKey& key, absl::string_view meta,
                   absl::Span<const uint8_t> data) override {
    MutexLock lock(disk_.mu_);
    disk_.Pass(&disk_.hold_writes_, &disk_.held_writes_);
    RETURN_IF_ERROR(disk_.write_status_);
    const auto it = disk_.generations_.find(generation);
    if (it == disk_.generations_.end()) return absl::NotFoundError("generation");
    it->second[key] = {std::string(meta.data(), meta.size()),
                       std::string(reinterpret_cast<const char*>(data.data()), data.size()), false};
    disk_.written_ += data.size();
    disk_.most_stored_ = std::max(disk_.most_stored_, disk_.StoredLocked());
    return absl::OkStatus();
  }
  absl::StatusOr<DiskRecord> Get(uint64_t generation, const TierKey& key) override {
    MutexLock lock(disk_.mu_);
    disk_.Pass(&disk_.hold_reads_, &disk_.held_reads_);
    RETURN_IF_ERROR(disk_.read_status_);
    const auto it = disk_.generations_.find(generation);
    if (it == disk_.generations_.end()) return absl::NotFoundError("generation");
    const auto record = it->second.find(key);
    if (record == it->second.end()) return absl::NotFoundError("record");
    const auto data = std::make_shared<std::string>(record->second.data);
    DiskRecord out;
    out.meta = record->second.meta;
    out.data = {reinterpret_cast<const uint8_t*>(data->data()), data->size()};
    out.owner = data;
    return out;
  }
  absl::Status Erase(uint64_t generation, const TierKey& key) override {
    MutexLock lock(disk_.mu_);
    if (const auto it = disk_.generations_.find(generation); it != disk_.generations_.end())
      it->second.erase(key);
    return absl::OkStatus();
  }
  absl::Status Flush() override {
    MutexLock lock(disk_.mu_);
    RETURN_IF_ERROR(disk_.write_status_);
    for (auto& [generation, records] : disk_.generations_) {
      for (auto& [key, record] : records) record.flushed = true;
    }
    return absl::OkStatus();
  }
  absl::Status ForEach(uint64_t generation, const Visitor& visit) override {
    MutexLock lock(disk_.mu_);
    for (const auto& [key, record] : disk_.generations_[generation]) visit(key, record.meta);
    return absl::OkStatus();
  }

 private:
  MemDisk& disk_;
};

std::unique_ptr<DiskStore> MemDisk::Open() {
  return std::make_unique<MemDiskStore>(this);
}

void MemDisk::Pass(bool* hold, int* held) {
  ++*held;
  changed_.NotifyAll();
  while (*hold) changed_.Wait(mu_);
  --*held;
}

void MemDisk::LoseUnflushed() {
  MutexLock lock(mu_);
  for (auto& [generation, records] : generations_)
    std::erase_if(records, [](const auto& item) { return !item.second.flushed; });
}

void MemDisk::FailWrites(absl::Status status) {
  MutexLock lock(mu_);
  write_status_ = std::move(status);
}
void MemDisk::FailReads(absl::Status status) {
  MutexLock lock(mu_);
  read_status_ = std::move(status);
}
void MemDisk::HoldWrites(bool hold) {
  MutexLock lock(mu_);
  hold_writes_ = hold;
  changed_.NotifyAll();
}
void MemDisk::HoldReads(bool hold) {
  MutexLock lock(mu_);
  hold_reads_ = hold;
  changed_.NotifyAll();
}
void MemDisk::WaitHeldWrite() {
  MutexLock lock(mu_);
  while (held_writes_ == 0) changed_.Wait(mu_);
}
void MemDisk::WaitHeldRead() {
  MutexLock lock(mu_);
  while (held_reads_ == 0) changed_.Wait(mu_);
}

void MemDisk::CorruptData(const TierKey& key) {
  MutexLock lock(mu_);
  for (auto& [generation, records] : generations_) {
    if (const auto it = records.find(key); it != records.end())
      it->second.data[it->second.data.size() / 2] ^= 1;
  }
}
void MemDisk::CorruptMeta(const TierKey& key) {
  MutexLock lock(mu_);
  for (auto& [generation, records] : generations_) {
    if (const auto it = records.find(key); it != records.end())
      it->second.meta[it->second.meta.size() / 2] ^= 1;
  }
}

size_t MemDisk::records() const {
  MutexLock lock(mu_);
  size_t n = 0;
  for (const auto& [generation, records] : generations_) n += records.size();
  return n;
}
uint64_t MemDisk::written_bytes() const {
  MutexLock lock(mu_);
  return written_;
}
uint64_t MemDisk::StoredLocked() const {
  uint64_t n = 0;
  for (const auto& [generation, records] : generations_) {
    for (const auto& [key, record] : records) n += record.data.size();
  }
  return n;
}
uint64_t MemDisk::stored_bytes() const {
  MutexLock lock(mu_);
  return StoredLocked();
}
uint64_t MemDisk::most_stored_bytes() const {
  MutexLock lock(mu_);
  return most_stored_;
}
std::vector<uint64_t> MemDisk::generations() const {
  MutexLock lock(mu_);
  std::vector<uint64_t> out;
  for (const auto& [generation, records] : generations_) out.push_back(generation);
  return out;
}

}  // namespace oscarkv
