// Writes blocks to the store while their layers are still being computed: the compute thread says
// how far it is, the I/O threads reserve, write and commit. The compute thread never waits for the
// store.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "common/task_pool.h"
#include "worker/block_io.h"

namespace oscarkv::worker {

struct PutOutcome {
  std::vector<absl::Status> statuses;  // one per block, in any order; kAlreadyExists: it was stored
                                       // before, or by another put
  TransferTotals totals;

  // Blocks that are in the store now.
  static bool Stored(const absl::Status& status) {
    return status.ok() || absl::IsAlreadyExists(status);
  }
};

class BlockPutter;

// Blocks on their way. Thread-safe. Keeps itself alive until `done` returned.
class BlockPut : public std::enable_shared_from_this<BlockPut> {
 public:
  // The first `layers` layers of all blocks are final. With the last one the blocks are committed.
  void LayersReady(int layers);
  void AllReady() { LayersReady(num_layers_); }
  // Gives up: what is not committed yet never will be; `done` still comes.
  void Abandon();

 private:
  friend class BlockPutter;
  BlockPut(BlockPutter* putter, std::function<void(PutOutcome)> done);
  void Wake() REQUIRES(mu_);
  void Pump();
  void Open();
  void WriteLayers(int begin, int end);
  void Finish(bool abandoned);
  // Another put of one of our blocks ended.
  void OnForeign(const absl::Status& status);
  void Report();

  BlockPutter* const putter_;
  const int num_layers_;
  const std::string trace_;          // what the thread worked for that started it
  std::vector<StoredBlock> blocks_;  // that no other put had under way; fixed before the first Pump
  // Touched by one Pump at a time.
  std::shared_ptr<KvClient> store_;  // of the blocks' tenant; outlives the batch
  std::unique_ptr<PutBatch> batch_;
  std::vector<absl::Status> statuses_;  // of blocks_
  bool opened_ = false;

  Mutex mu_;
  std::function<void(PutOutcome)> done_ GUARDED_BY(mu_);
  PutOutcome outcome_ GUARDED_BY(mu_);
  bool pumping_ GUARDED_BY(mu_) = false;  // a Pump is queued or running
  bool abandoned_ GUARDED_BY(mu_) = false;
  bool ended_ GUARDED_BY(mu_) = false;
  int ready_ GUARDED_BY(mu_) = 0;
  int written_ GUARDED_BY(mu_) = 0;
  int awaited_ GUARDED_BY(mu_) = 1;  // blocks under way in other puts, and one for our own
};

// Starts puts, one per block at a time: two sequences of equal tokens have equal blocks, and the
// store takes two reservations of a block by one session for one. A put that finds a block under
// way waits for the other put instead. Thread-safe.
class BlockPutter {
 public:
  // Both outlive the putter.
  BlockPutter(const BlockIo* io, TaskPool* pool) : io_(io), pool_(pool) {}

  // Reserves room on an I/O thread, for the caller's trace (common/trace.h). The blocks' slots must
  // stay, and the bytes of a layer unchanged once it was called ready, until `done`, which comes
  // exactly once, from an I/O thread. All of one tenant, and no block twice in one call.
  std::shared_ptr<BlockPut> Start(std::vector<StoredBlock> blocks,
                                  std::function<void(PutOutcome)> done);

 private:
  friend class BlockPut;
  // The put of `key` by its owner ended.
  void Ended(const BlockKey& key, const absl::Status& status);

  const BlockIo* const io_;
  TaskPool* const pool_;
  Mutex mu_;
  // Blocks under way, with the puts that wait for them.
  std::map<BlockKey, std::vector<std::shared_ptr<BlockPut>>> under_way_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::worker
