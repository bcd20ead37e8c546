#include "tests/fakes/fake_kv_client.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"

namespace oscarkv {

void FakeKvStore::set_fault(Fault fault) {
  MutexLock lock(mu_);
  fault_ = std::move(fault);
}

absl::Status FakeKvStore::Ask(Op op, const BlockKey* key) {
  Fault fault;
  {
    MutexLock lock(mu_);
    ++calls_[op];
    fault = fault_;
  }
  return fault ? fault(op, key) : absl::OkStatus();
}

const FakeKvStore::Block* FakeKvStore::Find(const BlockKey& key) const {
  auto it = blocks_.find(key);
  return it == blocks_.end() || it->second.expires <= clock_->Now() ? nullptr : &it->second;
}

bool FakeKvStore::Contains(const BlockKey& key) const {
  MutexLock lock(mu_);
  return Find(key) != nullptr;
}

bool FakeKvStore::Erase(const BlockKey& key) {
  MutexLock lock(mu_);
  return blocks_.erase(key) > 0;
}

bool FakeKvStore::Corrupt(const BlockKey& key, size_t offset) {
  MutexLock lock(mu_);
  auto it = blocks_.find(key);
  if (it == blocks_.end() || offset >= it->second.bytes.size()) return false;
  it->second.bytes[offset] ^= 1;
  return true;
}

size_t FakeKvStore::Count(BlockKind kind) const {
  MutexLock lock(mu_);
  return std::count_if(blocks_.begin(), blocks_.end(),
                       [&](const auto& b) { return b.second.spec.kind == kind; });
}

size_t FakeKvStore::size() const {
  MutexLock lock(mu_);
  return blocks_.size();
}

void FakeKvStore::Clear() {
  MutexLock lock(mu_);
  blocks_.clear();
}

std::string FakeKvStore::Bytes(const BlockKey& key) const {
  MutexLock lock(mu_);
  auto it = blocks_.find(key);
  return it == blocks_.end() ? "" : it->second.bytes;
}

int FakeKvStore::open_reservations() const {
  MutexLock lock(mu_);
  return static_cast<int>(reserved_.size());
}

std::vector<std::string> FakeKvStore::violations() const {
  MutexLock lock(mu_);
  return violations_;
}

int FakeKvStore::calls(Op op) const {
  MutexLock lock(mu_);
  auto it = calls_.find(op);
  return it == calls_.end() ? 0 : it->second;
}

void FakeKvStore::Violation(std::string text) {
  MutexLock lock(mu_);
  violations_.push_back(std::move(text));
}

absl::Status FakeKvStore::Read(const GetRequest& request) {
  MutexLock lock(mu_);
  const Block* block = Find(request.key);
  if (block == nullptr) return absl::NotFoundError(absl::StrCat("no block ", request.key.Hex()));
  if (block->spec.placement != request.placement)
    violations_.push_back("get with another placement than the put");
  for (const LocalPiece& piece : request.pieces) {
    uint64_t covered = 0;
    for (const Slice& slice : block->slices) {
      if (slice.offset < piece.offset || slice.offset + slice.length > piece.offset + piece.length)
        continue;
      covered += slice.length;
      if (Crc32c(block->bytes.data() + slice.offset, slice.length) != slice.crc32c) {
        blocks_.erase(request.key);
        return absl::DataLossError("checksum");
      }
    }
    if (covered != piece.length) {
      violations_.push_back("get of a piece that does not cover whole slices");
      return absl::InvalidArgumentError("piece");
    }
    std::memcpy(piece.data, block->bytes.data() + piece.offset, piece.length);
  }
  return absl::OkStatus();
}

absl::Status FakeKvStore::Reserve(const BlockSpec& spec) {
  MutexLock lock(mu_);
  if (Find(spec.key) != nullptr) return absl::AlreadyExistsError("stored");
  if (!reserved_.try_emplace(spec.key, 1).second)
    return absl::AlreadyExistsError("being put by another");
  blocks_.erase(spec.key);  // an expired one
  return absl::OkStatus();
}

void FakeKvStore::Unreserve(const BlockKey& key) {
  MutexLock lock(mu_);
  reserved_.erase(key);
}

absl::Status FakeKvStore::Store(const BlockSpec& spec, std::string bytes,
                                const std::vector<Slice>& slices) {
  MutexLock lock(mu_);
  uint64_t end = 0;
  for (const Slice& slice : slices) {
    if (slice.offset != end || slice.offset + slice.length > bytes.size() ||
        Crc32c(bytes.data() + slice.offset, slice.length) != slice.crc32c) {
      violations_.push_back("commit with slices that do not fit the bytes");
      return absl::DataLossError("slices");
    }
    end += slice.length;
  }
  if (end != spec.size) {
    violations_.push_back("commit with slices that do not cover the block");
    return absl::DataLossError("slices");
  }
  const Time expires = spec.ttl > Duration(0) ? clock_->Now() + spec.ttl : Time::max();
  blocks_[spec.key] = {spec, std::move(bytes), slices, expires};
  return absl::OkStatus();
}

class FakePutBatch final : public PutBatch {
 public:
  FakePutBatch(FakeKvStore* store, absl::Span<const BlockSpec> items)
      : store_(store), items_(items.begin(), items.end()) {
    for (const BlockSpec& item : items_) {
      absl::Status status = store_->Ask(FakeKvStore::Op::kStartPut, &item.key);
      if (status.ok()) status = store_->Reserve(item);
      open_.push_back(status.ok());
      statuses_.push_back(std::move(status));
      bytes_.emplace_back(item.size, '\0');
    }
    pieces_.resize(items_.size());
  }
  ~FakePutBatch() override {
    for (size_t i = 0; i < items_.size(); ++i) {
      if (open_[i]) store_->Unreserve(items_[i].key);
    }
  }

  absl::Span<const absl::Status> statuses() const override { return statuses_; }

  void Write(size_t item, absl::Span<const LocalPiece> pieces) override {
    if (!open_[item]) return;
    if (absl::Status status = store_->Ask(FakeKvStore::Op::kWrite, &items_[item].key); !status.ok())
      failed_ = status;
    for (const LocalPiece& piece : pieces) {
      if (piece.offset + piece.length > bytes_[item].size()) {
        store_->Violation("write beyond the block");
        continue;
      }
      std::memcpy(bytes_[item].data() + piece.offset, piece.data, piece.length);
      pieces_[item].push_back(piece);
    }
  }

  std::vector<absl::Status> Commit(absl::Span<const std::vector<Slice>> slices, Time) override {
    for (size_t i = 0; i < items_.size(); ++i) {
      if (!open_[i]) continue;
      statuses_[i] = store_->Ask(FakeKvStore::Op::kCommit, &items_[i].key);
      if (statuses_[i].ok()) statuses_[i] = failed_;
      for (const LocalPiece& piece : pieces_[i]) {
        if (std::memcmp(bytes_[i].data() + piece.offset, piece.data, piece.length) != 0) {
          store_->Violation("memory changed between Write and Commit");
        }
      }
      if (statuses_[i].ok()) {
        totals_.bytes += bytes_[i].size();
        ++totals_.blocks;
        totals_.lanes = "fake";
        statuses_[i] = store_->Store(items_[i], std::move(bytes_[i]), slices[i]);
      }
      store_->Unreserve(items_[i].key);
      open_[i] = false;
    }
    return statuses_;
  }

  TransferTotals totals() const override { return totals_; }

 private:
  FakeKvStore* const store_;
  const std::vector<BlockSpec> items_;
  std::vector<absl::Status> statuses_;
  std::vector<bool> open_;
  std::vector<std::string> bytes_;
  std::vector<std::vector<LocalPiece>> pieces_;
  absl::Status failed_;
  TransferTotals totals_;
};

absl::StatusOr<size_t> FakeKvClient::Match(absl::Span<const BlockKey> chain, Time) {
  if (absl::Status status = store_->Ask(FakeKvStore::Op::kMatch, nullptr); !status.ok())
    return status;
  size_t matched = 0;
  while (matched < chain.size() && store_->Contains(chain[matched])) ++matched;
  return matched;
}

std::vector<bool> FakeKvClient::Exists(absl::Span<const BlockKey> keys, absl::Span<const BlockKey>,
                                       Time) {
  std::vector<bool> found;
  for (const BlockKey& key : keys) {
    found.push_back(store_->Ask(FakeKvStore::Op::kExists, &key).ok() && store_->Contains(key));
  }
  return found;
}

std::vector<absl::Status> FakeKvClient::Get(absl::Span<const GetRequest> requests, Time deadline,
                                            TransferTotals* totals) {
  std::vector<absl::Status> statuses;
  const absl::Status whole = store_->Ask(FakeKvStore::Op::kGet, nullptr);
  for (const GetRequest& request : requests) {
    absl::Status status = whole.ok() ? store_->Ask(FakeKvStore::Op::kGet, &request.key) : whole;
    if (store_->clock_->Now() >= deadline) status = absl::DeadlineExceededError("fake");
    if (status.ok()) status = store_->Read(request);
    if (status.ok() && totals != nullptr) {
      for (const LocalPiece& piece : request.pieces) totals->bytes += piece.length;
      ++totals->blocks;
      totals->lanes = "fake";
    }
    statuses.push_back(std::move(status));
  }
  return statuses;
}

absl::StatusOr<std::unique_ptr<PutBatch>> FakeKvClient::StartPut(absl::Span<const BlockSpec> items,
                                                                 Time) {
  if (absl::Status status = store_->Ask(FakeKvStore::Op::kStartPut, nullptr); !status.ok())
    return status;
  return std::make_unique<FakePutBatch>(store_, items);
}

absl::Status FakeKvClient::Erase(absl::Span<const BlockKey> keys, absl::Span<const BlockKey>,
                                 Time) {
  for (const BlockKey& key : keys) store_->Erase(key);
  return absl::OkStatus();
}

std::vector<KvNodeStats> FakeKvClient::Stats(Time) {
  return {};
}

}  // namespace oscarkv
