// Where a worker keeps KV blocks: two pools of fixed-size slots (2-bit pages, bf16 blocks) in
// memory that the transport registered, and the table of a sequence's blocks.
//
// A page slot holds a whole block, [layer][kv_head][PageHeadBytes]; a bf16 slot
// [layer][K,V][kv_head][64][head_dim]: the body formats of docs/block_format.md, so that one
// transfer fills a slot.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/mutex.h"
#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv {

inline constexpr int kBlockTokens = kernels::kPageTokens;  // 64
inline constexpr int kSinkBlocks = 1;                      // block 0 stays bf16
inline constexpr int kWindowBlocks = 4;  // recent window: 4 full blocks and the one being filled

// Block index of a position.
inline int BlockOf(int position) {
  return position / kBlockTokens;
}
// The first block that a query at `position` attends in bf16 behind the sink: blocks [1,
// FirstWindowBlock) are attended as 2-bit pages. The window is a function of the query's tile: with
// Q = position / 64, blocks Q-4..Q.
inline int FirstWindowBlock(int position) {
  const int first = BlockOf(position) - kWindowBlocks;
  return first < kSinkBlocks ? kSinkBlocks : first;
}

// Thread-safe allocation; the bytes of a slot belong to whoever holds its id. Freeing a slot that
// is not allocated would hand one sequence's KV to another: it aborts the process.
class KvPool {
 public:
  // `pages` and `blocks`: 128-byte aligned memory that outlives the pool; as many slots as fit.
  // PageBytes() and Bf16BlockBytes() of both models are multiples of 128.
  KvPool(const kernels::KvShape& shape, absl::Span<uint8_t> pages, absl::Span<uint8_t> blocks);

  // A slot id, or -1 when none is free. Contents are unspecified.
  int32_t AllocatePage();
  int32_t AllocateBlock();
  void FreePage(int32_t id);
  void FreeBlock(int32_t id);

  uint8_t* page(int32_t id) const {
    return pages_.data() + static_cast<size_t>(id) * shape_.PageBytes();
  }
  uint8_t* page_layer(int32_t id, int layer) const {
    return page(id) + layer * shape_.PageLayerBytes();
  }
  kernels::Bf16* block(int32_t id) const {
    return reinterpret_cast<kernels::Bf16*>(blocks_.data() +
                                            static_cast<size_t>(id) * shape_.Bf16BlockBytes());
  }
  kernels::Bf16* block_layer(int32_t id, int layer) const {
    return block(id) + static_cast<size_t>(layer) * shape_.Bf16LayerBytes() / 2;
  }
  const kernels::KvShape& shape() const { return shape_; }
  const uint8_t* page_base() const { return pages_.data(); }
  const uint8_t* block_base() const { return blocks_.data(); }

  // Tells pools of this process apart, also when one takes the place of another in memory.
  uint64_t serial() const { return serial_; }
  // How often a slot has been allocated: whoever keeps a copy of a slot's bytes elsewhere (a GPU)
  // sees by it that they are another's now. For the holder of the slot.
  uint32_t page_generation(int32_t id) const { return page_generations_[id]; }
  uint32_t block_generation(int32_t id) const { return block_generations_[id]; }

  int num_pages() const { return num_pages_; }
  int num_blocks() const { return num_blocks_; }
  int free_pages() const;
  int free_blocks() const;

 private:
  const kernels::KvShape shape_;
  const absl::Span<uint8_t> pages_, blocks_;
  const int num_pages_, num_blocks_;
  const uint64_t serial_;
  // An element belongs to whoever holds the slot; allocation, under mu_, comes before that.
  std::vector<uint32_t> page_generations_, block_generations_;
  mutable Mutex mu_;
  // Last in, first out: a slot just freed is the one whose memory is warm.
  struct FreeList {
    explicit FreeList(int slots);
    int32_t Take();
    void Give(int32_t id, const char* what);
    std::vector<int32_t> ids;
    std::vector<bool> used;
  };
  FreeList free_pages_ GUARDED_BY(mu_);
  FreeList free_blocks_ GUARDED_BY(mu_);
};

// One block of a sequence: its 2-bit page, its bf16 copy, either or both.
struct BlockSlots {
  int32_t page = -1;
  int32_t block = -1;
};

// The blocks of one sequence; frees its slots on destruction. Not thread-safe: one worker thread
// owns it.
class SequenceKv {
 public:
  explicit SequenceKv(KvPool* pool) : pool_(pool) {}
  ~SequenceKv() { Clear(); }
  SequenceKv(SequenceKv&& other) noexcept;
  SequenceKv& operator=(SequenceKv&& other) noexcept;

  KvPool& pool() const { return *pool_; }
  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  const BlockSlots& at(int i) const { return blocks_[i]; }

  // Makes sure that block i has a bf16 slot / a page slot. False: pool full.
  bool EnsureBlock(int i);
  bool EnsurePage(int i);
  void ReleaseBlock(int i);
  void ReleasePage(int i);
  void Clear();

 private:
  BlockSlots& Grow(int i);
  KvPool* pool_;
  std::vector<BlockSlots> blocks_;
};

}  // namespace oscarkv
