// One Pump of a put at a time runs on the I/O pool. It opens the batch, then writes the layers that
// became ready, until it has caught up with the compute thread or the last layer is out.
// LayersReady queues a Pump when none is there. So the calls on the PutBatch are sequential without
// a lock held across them.
//
// Puts wait for each other's blocks only after their own have ended, so no circle of waiting can
// form.
#include "worker/block_put.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/trace.h"

namespace oscarkv::worker {

std::shared_ptr<BlockPut> BlockPutter::Start(std::vector<StoredBlock> blocks,
                                             std::function<void(PutOutcome)> done) {
  auto put = std::shared_ptr<BlockPut>(new BlockPut(this, std::move(done)));
  MutexLock lock(mu_);
  MutexLock put_lock(put->mu_);
  for (StoredBlock& block : blocks) {
    auto [it, mine] = under_way_.try_emplace(block.spec.key);
    if (mine) {
      put->blocks_.push_back(std::move(block));
    } else {
      it->second.push_back(put);
      ++put->awaited_;
    }
  }
  put->Wake();
  return put;
}

void BlockPutter::Ended(const BlockKey& key, const absl::Status& status) {
  std::vector<std::shared_ptr<BlockPut>> waiting;
  {
    MutexLock lock(mu_);
    auto it = under_way_.find(key);
    waiting = std::move(it->second);
    under_way_.erase(it);
  }
  for (const auto& put : waiting) put->OnForeign(status);
}

BlockPut::BlockPut(BlockPutter* putter, std::function<void(PutOutcome)> done)
    : putter_(putter),
      num_layers_(putter->io_->identity().shape.num_layers),
      trace_(CurrentTrace()),
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
  putter_->pool_->Post([self = shared_from_this()] { self->Pump(); });
}

void BlockPut::Pump() {
  const TraceScope trace(trace_);
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
  if (blocks_.empty()) return;
  std::vector<BlockSpec> specs;
  specs.reserve(blocks_.size());
  for (const StoredBlock& block : blocks_) {
    specs.push_back(block.spec);
    // Our own shape and sizes: wrong only if codec and model disagree.
    if (absl::Status status = EncodeHeader(block.header, block.header_slot); !status.ok()) {
      statuses_.assign(blocks_.size(), status);
      return;
    }
  }
  auto store = putter_->io_->Store(blocks_[0].tenant);
  auto batch = store.ok() ? (*store)->StartPut(specs, putter_->io_->Deadline()) : store.status();
  if (!batch.ok()) {
    statuses_.assign(blocks_.size(), batch.status());
    return;
  }
  store_ = *std::move(store);
  batch_ = *std::move(batch);
  statuses_.assign(batch_->statuses().begin(), batch_->statuses().end());
}

void BlockPut::WriteLayers(int begin, int end) {
  std::vector<LocalPiece> pieces;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!statuses_[i].ok()) continue;
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
    if (!statuses_[i].ok()) continue;
    reserved = true;
    if (abandoned) {
      statuses_[i] = absl::CancelledError("the put was given up");
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
  TransferTotals totals;
  if (reserved && !abandoned) {
    statuses_ = batch_->Commit(slices, putter_->io_->Deadline());
    totals = batch_->totals();
  }
  batch_.reset();  // before anything is said: it revokes what was not committed, and reads no slot
                   // from here on
  for (size_t i = 0; i < blocks_.size(); ++i) putter_->Ended(blocks_[i].spec.key, statuses_[i]);
  {
    MutexLock lock(mu_);
    outcome_.totals = totals;
    outcome_.statuses.insert(outcome_.statuses.end(), statuses_.begin(), statuses_.end());
  }
  Report();
}

void BlockPut::OnForeign(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    outcome_.statuses.push_back(
        PutOutcome::Stored(status)
            ? absl::AlreadyExistsError("another request stored it")
            : absl::Status(status.code(),
                           absl::StrCat("put by another request: ", status.message())));
  }
  Report();
}

// One of the things that were awaited has come; the last one ends the put.
void BlockPut::Report() {
  std::function<void(PutOutcome)> done;
  PutOutcome outcome;
  {
    MutexLock lock(mu_);
    if (--awaited_ > 0) return;
    done = std::exchange(done_, nullptr);
    outcome = std::move(outcome_);
  }
  done(std::move(outcome));
}

}  // namespace oscarkv::worker
