// One Pump at a time runs on the I/O pool. It opens the batch, then writes the layers that became
// ready, until it has caught up with the compute thread or the last layer is out. LayersReady
// queues a Pump when none is there. So the calls on the PutBatch are sequential without a lock held
// across them.
#include "worker/block_put.h"

#include <utility>

#include "common/log.h"

namespace oscarkv::worker {

std::shared_ptr<BlockPut> BlockPut::Start(const BlockIo* io, IoPool* pool,
                                          std::vector<StoredBlock> blocks,
                                          std::function<void(PutOutcome)> done) {
  auto put = std::shared_ptr<BlockPut>(new BlockPut(io, pool, std::move(blocks), std::move(done)));
  MutexLock lock(put->mu_);
  put->Wake();
  return put;
}

BlockPut::BlockPut(const BlockIo* io, IoPool* pool, std::vector<StoredBlock> blocks,
                   std::function<void(PutOutcome)> done)
    : io_(io),
      pool_(pool),
      blocks_(std::move(blocks)),
      num_layers_(io->identity().shape.num_layers),
      done_(std::move(done)) {}

void BlockPut::LayersReady(int layers) {
  MutexLock lock(mu_);
  ready_ = layers;
  Wake();
}

void BlockPut::Abandon() {
  MutexLock lock(mu_);
  abandoned_ = true;
  Wake();
}

void BlockPut::Wake() {
  if (pumping_ || ended_) return;
  pumping_ = true;
  pool_->Run([self = shared_from_this()] { self->Pump(); });
}

void BlockPut::Pump() {
  if (!opened_) Open();
  while (true) {
    int begin, end;
    bool abandoned;
    {
      MutexLock lock(mu_);
      begin = written_;
      end = written_ = ready_;
      abandoned = abandoned_;
      ended_ = abandoned || begin == num_layers_;
      if (!ended_ && begin == end) {
        pumping_ = false;
        return;
      }
    }
    if (abandoned || begin == num_layers_) return Finish(abandoned);
    WriteLayers(begin, end);
  }
}

void BlockPut::Open() {
  opened_ = true;
  std::vector<BlockSpec> specs;
  specs.reserve(blocks_.size());
  for (const StoredBlock& block : blocks_) {
    specs.push_back(block.spec);
    const absl::Status status = EncodeHeader(block.header, block.header_slot);
    if (!status.ok()) {  // our own shape and sizes: cannot be wrong unless the codec and this file
                         // disagree
      outcome_.statuses.assign(blocks_.size(), status);
      return;
    }
  }
  auto batch = io_->client().StartPut(specs, io_->Deadline());
  if (!batch.ok()) {
    outcome_.statuses.assign(blocks_.size(), batch.status());
    return;
  }
  batch_ = *std::move(batch);
  outcome_.statuses.assign(batch_->statuses().begin(), batch_->statuses().end());
}

void BlockPut::WriteLayers(int begin, int end) {
  if (batch_ == nullptr) return;
  std::vector<LocalPiece> pieces;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!outcome_.statuses[i].ok()) continue;
    pieces.clear();
    if (begin == 0) pieces.push_back(blocks_[i].HeaderPiece());
    for (int layer = begin; layer < end; ++layer) pieces.push_back(blocks_[i].LayerPiece(layer));
    batch_->Write(i, pieces);
  }
}

void BlockPut::Finish(bool abandoned) {
  bool reserved = false;
  std::vector<std::vector<Slice>> slices(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!outcome_.statuses[i].ok()) continue;
    reserved = true;
    if (abandoned) {
      outcome_.statuses[i] = absl::CancelledError("the put was given up");
      continue;
    }
    for (BlockSlice slice : SliceTable(blocks_[i].header.body, blocks_[i].header.shape)) {
      const bool is_header = slice.offset == 0;
      ChecksumSlice(
          is_header ? blocks_[i].header_slot : blocks_[i].body + (slice.offset - kBlockHeaderBytes),
          &slice);
      slices[i].push_back({slice.offset, slice.length, slice.crc32c});
    }
  }
  if (batch_ != nullptr && reserved && !abandoned)
    outcome_.statuses = batch_->Commit(slices, io_->Deadline());
  if (batch_ != nullptr) outcome_.totals = batch_->totals();
  batch_.reset();  // before `done`: it revokes what was not committed, and the slots may be reused
                   // from then on
  std::exchange(done_, nullptr)(std::move(outcome_));
}

}  // namespace oscarkv::worker
