// An in-memory store behind KvClient, with faults on demand, that also checks what its callers
// promised.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "kvstore/client/client.h"

namespace oscarkv {

// What all clients of one fake store share. Thread-safe.
class FakeKvStore {
 public:
  enum class Op { kMatch, kExists, kGet, kStartPut, kWrite, kCommit };
  // Asked before each operation, per block (`key` null: once per call; kMatch, and kStartPut and
  // kGet before their blocks), without a lock: it may block the calling thread. A status that is
  // not OK is the outcome.
  using Fault = std::function<absl::Status(Op op, const BlockKey* key)>;

  explicit FakeKvStore(const Clock* clock) : clock_(clock) {}
  void set_fault(Fault fault);

  bool Contains(const BlockKey& key) const;
  bool Erase(const BlockKey& key);
  // Flips a bit of the stored bytes at `offset`: the next reader finds the checksum wrong.
  bool Corrupt(const BlockKey& key, size_t offset);
  size_t Count(BlockKind kind) const;
  size_t size() const;
  void Clear();
  std::string Bytes(const BlockKey& key) const;
  // Reservations that were neither committed nor revoked.
  int open_reservations() const;
  // Broken promises: memory that changed before Commit returned, slices that do not fit, pieces
  // across slices, misplaced keys.
  std::vector<std::string> violations() const;
  // Calls per operation so far (per block for kGet, kWrite and kCommit).
  int calls(Op op) const;

 private:
  friend class FakeKvClient;
  friend class FakePutBatch;
  struct Block {
    BlockSpec spec;
    std::string bytes;
    std::vector<Slice> slices;
    Time expires = Time::max();
  };
  absl::Status Ask(Op op, const BlockKey* key);
  const Block* Find(const BlockKey& key) const REQUIRES(mu_);
  absl::Status Read(const GetRequest& request);
  absl::Status Reserve(const BlockSpec& spec);
  absl::Status Store(const BlockSpec& spec, std::string bytes, const std::vector<Slice>& slices);
  void Unreserve(const BlockKey& key);
  void Violation(std::string text);

  const Clock* const clock_;
  mutable Mutex mu_;
  Fault fault_ GUARDED_BY(mu_);
  std::map<BlockKey, Block> blocks_ GUARDED_BY(mu_);
  std::map<BlockKey, int> reserved_ GUARDED_BY(mu_);
  std::map<Op, int> calls_ GUARDED_BY(mu_);
  std::vector<std::string> violations_ GUARDED_BY(mu_);
};

class FakeKvClient final : public KvClient {
 public:
  explicit FakeKvClient(FakeKvStore* store) : store_(store) {}
  absl::StatusOr<size_t> Match(absl::Span<const BlockKey> chain, Time deadline) override;
  std::vector<bool> Exists(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement,
                           Time deadline) override;
  std::vector<absl::Status> Get(absl::Span<const GetRequest> requests, Time deadline,
                                TransferTotals* totals) override;
  absl::StatusOr<std::unique_ptr<PutBatch>> StartPut(absl::Span<const BlockSpec> items,
                                                     Time deadline) override;
  absl::Status Erase(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement,
                     Time deadline) override;
  KvStoreView View() const override { return {}; }
  std::vector<KvNodeStats> Stats(Time deadline) override;

 private:
  FakeKvStore* const store_;
};

// A store that is the same for all tenants; `client` outlives it.
inline auto StoreOfAll(KvClient* client) {
  return [client](const std::string&) -> absl::StatusOr<std::shared_ptr<KvClient>> {
    return std::shared_ptr<KvClient>(std::shared_ptr<void>(), client);
  };
}

}  // namespace oscarkv
