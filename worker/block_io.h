// How a worker's blocks are named, framed and moved: from the slots of a sequence to blocks of the
// store and back.
//
// Block b of a chain is stored as
//   main     b = 0 (the sink) and every block of profile bf16: a bf16 block; else a 2-bit page
//   block. Content-addressed. window   the bf16 copy of a coded block that is still inside the
//   recent window: hand-over, with a TTL partial  the bf16 rows of the last, unfinished block:
//   hand-over, with a TTL
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "codec/block_format.h"
#include "kvstore/client/client.h"
#include "kvstore/types.h"
#include "model/kv_pool.h"
#include "worker/kv_arena.h"

namespace oscarkv::worker {

// The names of the blocks of a growing token sequence. Not thread-safe.
class ChainNames {
 public:
  // `answers_from`: blocks with a token from this one on get names of their own, by which no prompt
  // finds them; see BlockIoOptions.
  explicit ChainNames(const Sha256Digest& name_space, size_t answers_from = SIZE_MAX,
                      std::string tenant = "");
  // Hashes the full blocks of `tokens` (the whole sequence, an extension of the last call's) that
  // are new.
  void Extend(absl::Span<const int32_t> tokens);
  absl::Span<const BlockKey> chain() const { return chain_; }
  // Of a block whose last token is before `end`.
  const Sha256Digest& name_space(size_t end) const {
    return end > answers_from_ ? answers_ : name_space_;
  }
  // Of the same sequence, none of it named yet.
  ChainNames Fresh() const { return ChainNames(name_space_, answers_from_, tenant_); }
  const std::string& tenant() const { return tenant_; }
  BlockKey parent(int b) const { return b == 0 ? BlockKey{} : chain_[b - 1]; }

 private:
  Sha256Digest name_space_, answers_;
  size_t answers_from_;
  std::string tenant_;
  std::vector<BlockKey> chain_;
};

// A block of the store and where it lies in this worker.
struct StoredBlock {
  std::string tenant;
  BlockSpec spec;
  BlockHeader header;  // to write, or to expect
  uint8_t* header_slot = nullptr;
  uint8_t* body = nullptr;

  size_t body_bytes() const { return BodyBytes(header.body, header.shape); }
  size_t layer_bytes() const { return BodyLayerBytes(header.body, header.shape); }
  LocalPiece HeaderPiece() const { return {0, kBlockHeaderBytes, header_slot}; }
  LocalPiece BodyPiece() const { return {kBlockHeaderBytes, body_bytes(), body}; }
  LocalPiece LayerPiece(int layer) const {
    return {kBlockHeaderBytes + layer * layer_bytes(), layer_bytes(), body + layer * layer_bytes()};
  }
};

// What distinguishes this worker's blocks from all others.
struct BlockIdentity {
  Profile profile = Profile::kOscar;
  bool canonical_history = false;
  kernels::KvShape shape;
  Sha256Digest codec_fingerprint{};
  Sha256Digest model_fingerprint{};
};

struct BlockIoOptions {
  Duration handover_ttl = std::chrono::seconds(120);
  Duration timeout = std::chrono::seconds(5);  // of one call to the store
  // No answer depends on what the store happens to hold. Decode steps and prefill sum in different
  // orders: a later prompt that finds an answer's blocks gets other bits than one that has to
  // compute them, so it never finds them; and what a worker misses it computes as it was computed
  // first, however long that takes.
  bool deterministic = false;
};

// How a fetch of many blocks is cut into gets, and what bounds each of them beside the store's
// timeout. The functions may be empty.
struct FetchPace {
  size_t get_blocks = 64;  // enough to fill the wire, few enough that a cancelled fetch ends soon
  // How long the get of blocks [begin, end) may take; after one that took longer no further one is
  // made.
  std::function<Duration(size_t begin, size_t end)> patience;
  // After each get: what it moved of the bytes asked for, and whether it was given up.
  std::function<void(const TransferTotals& moved, uint64_t asked, Duration took, bool late)>
      observe;
};

// The store as one tenant sees it. May block while it connects.
using StoreOf = std::function<absl::StatusOr<std::shared_ptr<KvClient>>(const std::string&)>;

// Thread-safe. What `store_of` and `arena` stand for outlives it.
class BlockIo {
 public:
  BlockIo(StoreOf store_of, KvArena* arena, const BlockIdentity& identity,
          const BlockIoOptions& options, const Clock* clock);

  // The digest that all block keys of a tenant start from.
  Sha256Digest NameSpace(absl::string_view tenant) const;
  // For a sequence whose tokens behind the first `prompt_tokens` are an answer.
  ChainNames Names(absl::string_view tenant, size_t prompt_tokens) const {
    return ChainNames(NameSpace(tenant), options_.deterministic ? prompt_tokens : SIZE_MAX,
                      std::string(tenant));
  }
  bool coded() const {
    return identity_.profile != Profile::kBf16;
  }  // blocks behind the sink have pages
  const BlockIdentity& identity() const { return identity_; }
  bool deterministic() const { return options_.deterministic; }
  absl::StatusOr<std::shared_ptr<KvClient>> Store(const std::string& tenant) const {
    return store_of_(tenant);
  }
  KvArena& arena() const { return *arena_; }
  const Clock& clock() const { return *clock_; }
  Time Deadline() const { return clock_->Now() + options_.timeout; }
  // True when block b (full) lies in a page slot, not in a bf16 slot.
  bool IsPage(int b) const { return coded() && b >= kSinkBlocks; }

  // The slots named must be there in `kv`.
  StoredBlock Main(const ChainNames& names, const SequenceKv& kv, int b) const;
  StoredBlock Window(const ChainNames& names, const SequenceKv& kv, int b) const;
  // `rows`: the 1..63 tokens behind the last full block of `names`.
  StoredBlock Partial(const ChainNames& names, const SequenceKv& kv,
                      absl::Span<const int32_t> rows) const;

  // Reads blocks, all of one tenant, into their slots and checks their headers. One status per
  // block; a block whose header is not as expected is erased and kDataLoss. Looks at `cancelled`
  // between gets: then kCancelled for the rest. Blocks that came too late, or that were not asked
  // for because earlier ones did: kDeadlineExceeded.
  std::vector<absl::Status> Fetch(absl::Span<const StoredBlock> blocks,
                                  const std::atomic<bool>& cancelled, TransferTotals* totals,
                                  const FetchPace& pace = {}) const;

 private:
  StoredBlock Describe(const ChainNames& names, BlockKind kind, int tokens) const;
  absl::Status CheckFetched(KvClient* store, const StoredBlock& block) const;

  const StoreOf store_of_;
  KvArena* const arena_;
  const BlockIdentity identity_;
  const BlockIoOptions options_;
  const Clock* const clock_;
};

// Adds the bytes, blocks and lanes of `more`.
void AddTotals(const TransferTotals& more, TransferTotals* sum);

}  // namespace oscarkv::worker
