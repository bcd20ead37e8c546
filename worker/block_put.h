// Writes blocks to the store while their layers are still being computed: the compute thread says
// how far it is, the I/O threads reserve, write and commit. The compute thread never waits for the
// store.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "worker/block_io.h"
#include "worker/io_pool.h"

namespace oscarkv::worker {

struct PutOutcome {
  std::vector<absl::Status> statuses;  // per block; kAlreadyExists: it was stored before
  TransferTotals totals;

  // Blocks that are in the store now.
  static bool Stored(const absl::Status& status) {
    return status.ok() || absl::IsAlreadyExists(status);
  }
};

// Thread-safe. Keeps itself alive until `done` returned.
class BlockPut : public std::enable_shared_from_this<BlockPut> {
 public:
  // Reserves room on an I/O thread. The blocks' slots must stay, and the bytes of a layer unchanged
  // once it was called ready, until `done`, which an I/O thread calls exactly once. `io` and `pool`
  // outlive that.
  static std::shared_ptr<BlockPut> Start(const BlockIo* io, IoPool* pool,
                                         std::vector<StoredBlock> blocks,
                                         std::function<void(PutOutcome)> done);
  // The first `layers` layers of all blocks are final. With the last one the blocks are committed.
  void LayersReady(int layers);
  void AllReady() { LayersReady(num_layers_); }
  // Gives up: what is not committed yet never will be; `done` still comes.
  void Abandon();

 private:
  BlockPut(const BlockIo* io, IoPool* pool, std::vector<StoredBlock> blocks,
           std::function<void(PutOutcome)> done);
  void Wake() REQUIRES(mu_);
  void Pump();
  void Open();
  void WriteLayers(int begin, int end);
  void Finish(bool abandoned);

  const BlockIo* const io_;
  IoPool* const pool_;
  const std::vector<StoredBlock> blocks_;
  const int num_layers_;
  // Touched by one Pump at a time.
  std::function<void(PutOutcome)> done_;
  std::unique_ptr<PutBatch> batch_;
  PutOutcome outcome_;
  bool opened_ = false;

  Mutex mu_;
  bool pumping_ GUARDED_BY(mu_) = false;  // a Pump is queued or running
  bool abandoned_ GUARDED_BY(mu_) = false;
  bool ended_ GUARDED_BY(mu_) = false;
  int ready_ GUARDED_BY(mu_) = 0;
  int written_ GUARDED_BY(mu_) = 0;
};

}  // namespace oscarkv::worker
