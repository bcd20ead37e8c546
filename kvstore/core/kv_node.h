// A node of the store without its network: sessions, two-phase puts, pins, lookups, quotas.
// KvStoreService feeds it from gRPC, LocalStub straight from tests.
//
// Life of a put: PutStart reserves an extent (Session::reservations) -> the client writes the bytes
// into the arena -> PutEnd checks slice table and checksums and makes the block visible
// (BlockIndex). A reservation that is revoked, expires or loses its session goes to quarantine: its
// writer may still be writing. It leaves when the writer said that nothing is under way (PutRevoke
// with `drained`, CloseSession), else after twice the put TTL, which bounds every transfer of an
// obedient client.
//
// Life of a read: GetStart pins -> the client reads the arena one-sidedly -> Release says whether
// the pin held all the time. That verdict is our stale-read check: as long as a pin is in the
// session's table its block has not moved and its memory was not freed, so a pin found by Release
// proves that all that was read before is the block. (A guard word in front of each block would
// cost every read a second operation, and one-sided reads do not order it with the data.) Checksums
// stand behind it.
//
// Tier (kv_node_tier.cc). With a tier below memory, blocks that eviction takes are offered to it,
// lookups count what it has, and a get of such a block waits until it was read into memory.
//
// Tenants. A session belongs to one; it sees, pins, reads and erases only what sessions of the same
// tenant put.
//
// Thread-safe. Handlers never block but for short locks and, in PutEnd, the time of the checksums.
// `Tick` does all that is due with time; nothing else happens by itself, so with a FakeClock the
// node is deterministic.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "kvstore/api.h"
#include "kvstore/core/block_index.h"
#include "kvstore/core/session.h"
#include "kvstore/metrics.h"
#include "kvstore/tier/tier.h"

namespace oscarkv {

struct KvNodeOptions {
  std::string name = "node";  // shown in metrics and logs
  EvictionKind eviction = EvictionKind::kS3Fifo;
  double high_watermark = 0.95;     // shares of the capacity: Tick evicts above high ...
  double low_watermark = 0.90;      // ... until low
  uint64_t slab_bytes = 0;          // 0: chosen by size of the arena
  uint64_t tenant_quota_bytes = 0;  // 0: none
  double extra_share = 0.05;        // of the capacity, that extra copies may take
  size_t shards = 16;
  size_t max_tenants = 256;
  size_t max_sessions = 4096;
  size_t max_pins_per_session = 65536;
  Duration session_ttl = std::chrono::seconds(10);
  Duration max_pin_ttl = std::chrono::seconds(60);
  Duration put_ttl = std::chrono::seconds(60);
  Duration tier_wait = std::chrono::seconds(2);  // longest time that a get waits for the tier
  bool verify_on_put = true;                     // PutEnd checks the CRCs of the bytes that arrived
  bool grants = false;                           // MayTouch can be asked
  uint64_t seed = 0;                             // of session ids and of the incarnation
  // Handed out by OpenSession.
  std::string transport_name, transport_address, exported_arena;
};

class KvNode {
 public:
  // `arena`, `clock` and `metrics` (may be null) outlive the node.
  // `tier` (may be null: only memory) outlives the node too, but its Shutdown comes first: until
  // then its threads call the node. `tier_metrics` may be null.
  KvNode(const KvNodeOptions& options, absl::Span<uint8_t> arena, const Clock* clock,
         KvNodeMetrics* metrics, Tier* tier = nullptr, KvTierMetrics* tier_metrics = nullptr);
  ~KvNode();
  KvNode(const KvNode&) = delete;
  KvNode& operator=(const KvNode&) = delete;

  // The calls of api.h. The status is that of the whole call: kInvalidArgument, kUnauthenticated
  // (session unknown or expired), kResourceExhausted (too many sessions, tenants).
  absl::Status Handle(const kv::OpenSessionRequest& request, kv::OpenSessionResponse* response);
  absl::Status Handle(const kv::KeepAliveRequest& request, kv::KeepAliveResponse* response);
  absl::Status Handle(const kv::CloseSessionRequest& request, kv::CloseSessionResponse* response);
  absl::Status Handle(const kv::MatchPrefixRequest& request, kv::MatchPrefixResponse* response);
  absl::Status Handle(const kv::ExistsRequest& request, kv::ExistsResponse* response);
  // Of what is in memory; StartGet is the whole call.
  absl::Status Handle(const kv::GetStartRequest& request, kv::GetStartResponse* response);
  absl::Status Handle(const kv::RenewPinsRequest& request, kv::RenewPinsResponse* response);
  absl::Status Handle(const kv::ReleaseRequest& request, kv::ReleaseResponse* response);
  absl::Status Handle(const kv::PutStartRequest& request, kv::PutStartResponse* response);
  absl::Status Handle(const kv::PutEndRequest& request, kv::PutEndResponse* response);
  absl::Status Handle(const kv::PutRevokeRequest& request, kv::PutRevokeResponse* response);
  absl::Status Handle(const kv::EraseRequest& request, kv::EraseResponse* response);
  absl::Status Handle(const kv::StatsRequest& request, kv::StatsResponse* response);

  // GetStart of all tiers. `done` runs exactly once: before StartGet returns when all that is
  // stored is in memory, else on a thread of the tier or of Tick, when the last block was promoted
  // or the time for it is over: half of `budget` (what the caller has left), at most tier_wait.
  // Blocks that were not read by then are kNotFound; they come into memory all the same.
  using GetDone = std::function<void(const absl::Status&, const kv::GetStartResponse&)>;
  void StartGet(const kv::GetStartRequest& request, Duration budget, GetDone done);

  // --- Copies at other nodes (kv_node_replicas.cc). What decides is kvstore/repair.

  absl::Status Handle(const kv::CompareDigestsRequest& request,
                      kv::CompareDigestsResponse* response);
  absl::Status Handle(const kv::CompareBlocksRequest& request, kv::CompareBlocksResponse* response);
  // What CompareDigests is answered with, by the peer's endpoint. Without digests for a peer all
  // buckets differ.
  using DigestTable = absl::flat_hash_map<std::string, std::vector<uint64_t>>;
  void PublishDigests(DigestTable digests);
  // `compared`: when the comparison began that they are of.
  void PublishReplicaStats(const ReplicaStats& stats, Time compared);

  // Blocks whose copies are to be looked after, without those that were put in the last `settle`.
  std::vector<BlockIndex::Listed> ListBlocks(Duration settle) const;
  // A block that stays where it is until this is destroyed. No use of it is counted.
  class Held {
   public:
    Held(BlockIndex* index, Block* block) : index_(index), block_(block) {}
    ~Held() { index_->Unhold(block_); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    const Block& operator*() const { return *block_; }
    const Block* operator->() const { return block_; }

   private:
    BlockIndex* const index_;
    Block* const block_;
  };
  std::unique_ptr<Held> Hold(const StoredKey& key);  // null: not stored
  absl::Span<const uint8_t> BytesOf(const Held& held) const {
    return arena_.subspan(held->extent.offset, held->size);
  }
  // Drops what the other nodes were told to forget.
  void EraseCopy(const StoredKey& key) { index_.Erase(key, std::nullopt); }
  // Compares a block with its checksums; one that differs is erased, counted as found by `found`
  // and kDataLoss. kNotFound.
  absl::Status CheckBlock(const StoredKey& key, absl::string_view found);

  // What is read most, and what its readers are told; as BlockIndex says.
  void CountReads(uint32_t report_at) { index_.CountReads(report_at); }
  std::vector<BlockIndex::Hot> EndReadWindow() { return index_.EndReadWindow(clock_->Now()); }
  void SetExtraCopies(const StoredKey& key, uint32_t copies) {
    index_.SetExtraCopies(key, copies, clock_->Now());
  }

  // Whose session it is; none: unknown, or expired.
  std::optional<std::string> TenantOf(uint64_t session_id) const;

  // The streaming data path. Copies under the session's lock, so neither pin nor reservation can go
  // away meanwhile; at most kMaxChunkBytes at once. kAborted: the pin is gone; kNotFound: no such
  // reservation; kInvalidArgument: out of its bounds.
  absl::Status ReadPinned(uint64_t session_id, const kv::ReadPiece& piece, uint8_t* out);
  absl::Status WriteReserved(uint64_t session_id, const kv::WriteChunk& chunk,
                             absl::Span<const uint8_t> data);

  // The data path asks before each access, if options.grants: whether the session has pinned, resp.
  // reserved and not committed, the block that these bytes of the arena belong to.
  bool MayTouch(uint64_t session_id, bool write, uint64_t offset, uint64_t length);

  // Expires sessions, pins, reservations and blocks, frees quarantine, evicts down to the low
  // watermark, sets the gauges. Call it every 100 ms or so, from one thread.
  void Tick();

  uint64_t incarnation() const { return incarnation_; }

 private:
  struct Quarantined {
    Extent extent;
    Tenant* tenant;
    uint64_t charged;
    uint64_t session_id;
    Time until;
  };

  // Sessions (kv_node.cc).
  absl::StatusOr<std::shared_ptr<Session>> FindSession(uint64_t id);
  absl::StatusOr<Tenant*> FindTenant(const std::string& name);
  std::vector<std::shared_ptr<Session>> AllSessions() const;
  // `drained`: the client promised that it writes no more.
  void EndSession(Session* session, bool drained);
  void ExpireInside(Session* session, Time now);
  Duration PinTtl(Duration wanted) const;
  void SetGauges(Time now);

  // Of a pin that the caller takes out of the table.
  void Unpin(Session* session, const Pin& pin) REQUIRES(session->mu);
  // Pins a block that is in memory. kNotFound.
  absl::Status PinOne(Session* session, const BlockKey& key, uint32_t epoch, Time now, Time expires,
                      kv::BlockLocation* location) REQUIRES(session->mu);

  // The tier (kv_node_tier.cc).
  struct PendingGet;  // a GetStart that waits
  struct Waiter {
    std::shared_ptr<PendingGet> get;
    size_t item;
  };
  void Demote(const Block& block, absl::Span<const uint8_t> bytes);
  size_t MatchChain(const Tenant& tenant, absl::Span<const BlockKey> keys, Time now);
  bool EraseFromTier(const Tenant& tenant, const BlockKey& key);
  void Promote(Tenant* tenant, const BlockKey& key, Waiter waiter);
  void OnFetched(Tenant* tenant, const StoredKey& key, const absl::StatusOr<TierBlock>& block,
                 absl::Span<const uint8_t> bytes);
  absl::Status InsertPromoted(Tenant* tenant, const TierBlock& block,
                              absl::Span<const uint8_t> bytes);
  void EndPromotion(const StoredKey& key, absl::Status status);
  void CountPromotion(const absl::Status& status);
  void EndItem(const Waiter& waiter, const absl::Status& status);
  void EndLateGets(Time now);
  void SetTierGauges();

  // Puts (kv_node_put.cc).
  // The size class in which the item may ask for room; kAlreadyExists: stored.
  absl::StatusOr<uint32_t> Admit(Session* session, const kv::PutItem& item, uint64_t put_id,
                                 Time now, uint64_t* extra_bytes) REQUIRES(session->mu);
  // Reserves room for admitted items of one size class: at once while there is room, then one by
  // one, making it.
  void StartRun(Session* session, const kv::PutStartRequest& request, absl::Span<const size_t> run,
                uint32_t size_class, Time now, kv::PutStartResponse* response)
      REQUIRES(session->mu);
  // What this put of the item reserved, now or in an earlier call.
  absl::Status Started(Session* session, const kv::PutItem& item, uint64_t put_id, uint64_t* offset,
                       uint64_t* generation) REQUIRES(session->mu);
  // May a copy of a block that another node has go into memory? (kv_node_replicas.cc)
  // `extra_bytes`: of extra copies that this call has admitted so far.
  absl::Status AdmitCopy(Session* session, const kv::PutItem& item, Time now, uint64_t extra_bytes);
  bool RoomForCopy(uint64_t size, Duration idle, Time now) const;
  void RememberErasure(const StoredKey& key);
  void ForgetErasure(const StoredKey& key);
  bool ErasedLately(const StoredKey& key, Time now);
  bool Charge(Tenant* tenant, uint64_t bytes);  // false: beyond the quota, nothing is charged
  absl::Status EndOne(Session* session, const kv::PutEndItem& item, Time now);
  // *consumed: the extent no longer belongs to the reservation.
  absl::Status CheckAndInsert(Session* session, const Reservation& reservation,
                              const kv::SliceTable& slices, Time now, bool* consumed);
  absl::StatusOr<Extent> Reserve(Tenant* tenant, uint32_t size_class, uint64_t bytes,
                                 const StoredKey& owner, Time now);
  // The next pool to take from: extra copies that nobody reads any more before all others.
  template <typename Pred>
  std::optional<BlockIndex::ColdPool> NextPool(Time now, Pred pred) const;
  bool MakeRoom(uint32_t size_class, Time now);
  bool DrainSlabFor(uint32_t size_class);
  bool EvictOf(Tenant* tenant, Time now);
  void EvictToWatermark(Time now);
  void FreeExtent(const Extent& extent, Tenant* tenant, uint64_t charged);
  // Both leave the entry in session->reservations to the caller.
  void Forget(Session* session, const Reservation& reservation) REQUIRES(session->mu);
  void Abandon(Session* session, const Reservation& reservation, bool drained)
      REQUIRES(session->mu);
  void FreeQuarantine(Time now, std::optional<uint64_t> closed_session);

  const KvNodeOptions options_;
  const absl::Span<uint8_t> arena_;
  const Clock* const clock_;
  KvNodeMetrics* const metrics_;
  const std::unique_ptr<BlockAllocator> allocator_;
  Tier* const tier_;
  KvTierMetrics* const tier_metrics_;
  BlockIndex index_;
  const uint64_t incarnation_;
  std::atomic<uint64_t> reserved_bytes_{0}, hits_{0}, misses_{0};  // blocks, of MatchPrefix
  std::atomic<uint64_t> extra_reserved_{0};                        // of the reserved bytes

  mutable Mutex sessions_mu_;
  absl::flat_hash_map<uint64_t, std::shared_ptr<Session>> sessions_ GUARDED_BY(sessions_mu_);
  uint64_t session_counter_ GUARDED_BY(sessions_mu_) = 0;

  mutable Mutex tenants_mu_;
  absl::flat_hash_map<std::string, std::unique_ptr<Tenant>> tenants_ GUARDED_BY(tenants_mu_);

  // Blocks that are being read from the tier, and the gets that wait for them.
  struct Promotion {
    std::vector<Waiter> waiters;
    bool erased = false;  // meanwhile
  };
  Mutex promotions_mu_;
  absl::flat_hash_map<StoredKey, Promotion> promotions_ GUARDED_BY(promotions_mu_);
  std::vector<std::shared_ptr<PendingGet>> waiting_gets_ GUARDED_BY(promotions_mu_);

  Mutex replicas_mu_;
  DigestTable digests_ GUARDED_BY(replicas_mu_);
  ReplicaStats replica_stats_ GUARDED_BY(replicas_mu_);
  Time compared_ GUARDED_BY(replicas_mu_){};
  // Blocks that clients erased, so that another node's copy does not come back.
  absl::flat_hash_map<StoredKey, Time> erasures_ GUARDED_BY(replicas_mu_);
  std::deque<std::pair<Time, StoredKey>> erasure_order_ GUARDED_BY(replicas_mu_);
  std::atomic<bool> any_erasures_{false};  // spares puts the lock

  mutable Mutex quarantine_mu_;
  std::deque<Quarantined> quarantine_ GUARDED_BY(quarantine_mu_);
  uint64_t quarantined_bytes_ GUARDED_BY(quarantine_mu_) = 0;
};

}  // namespace oscarkv
