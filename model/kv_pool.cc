#include "model/kv_pool.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace oscarkv {
namespace {

int SlotCount(size_t bytes, size_t slot_bytes) {
  return slot_bytes == 0 ? 0 : static_cast<int>(bytes / slot_bytes);
}

uint64_t NextSerial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

KvPool::FreeList::FreeList(int slots) : ids(slots), used(slots, false) {
  for (int i = 0; i < slots; ++i) ids[i] = slots - 1 - i;  // the first one taken is 0
}

int32_t KvPool::FreeList::Take() {
  if (ids.empty()) return -1;
  const int32_t id = ids.back();
  ids.pop_back();
  used[id] = true;
  return id;
}

void KvPool::FreeList::Give(int32_t id, const char* what) {
  if (id < 0 || id >= static_cast<int32_t>(used.size()) || !used[id]) {
    std::fprintf(stderr, "KvPool: freed %s slot %d of %zu, which is not allocated\n", what, id,
                 used.size());
    std::abort();
  }
  used[id] = false;
  ids.push_back(id);
}

KvPool::KvPool(const kernels::KvShape& shape, absl::Span<uint8_t> pages, absl::Span<uint8_t> blocks)
    : shape_(shape),
      pages_(pages),
      blocks_(blocks),
      num_pages_(SlotCount(pages.size(), shape.PageBytes())),
      num_blocks_(SlotCount(blocks.size(), shape.Bf16BlockBytes())),
      serial_(NextSerial()),
      page_generations_(num_pages_),
      block_generations_(num_blocks_),
      free_pages_(num_pages_),
      free_blocks_(num_blocks_) {}

int32_t KvPool::AllocatePage() {
  MutexLock lock(mu_);
  const int32_t id = free_pages_.Take();
  if (id >= 0) ++page_generations_[id];
  return id;
}

int32_t KvPool::AllocateBlock() {
  MutexLock lock(mu_);
  const int32_t id = free_blocks_.Take();
  if (id >= 0) ++block_generations_[id];
  return id;
}

void KvPool::FreePage(int32_t id) {
  MutexLock lock(mu_);
  free_pages_.Give(id, "page");
}

void KvPool::FreeBlock(int32_t id) {
  MutexLock lock(mu_);
  free_blocks_.Give(id, "block");
}

int KvPool::free_pages() const {
  MutexLock lock(mu_);
  return static_cast<int>(free_pages_.ids.size());
}

int KvPool::free_blocks() const {
  MutexLock lock(mu_);
  return static_cast<int>(free_blocks_.ids.size());
}

SequenceKv::SequenceKv(SequenceKv&& other) noexcept
    : pool_(other.pool_), blocks_(std::exchange(other.blocks_, {})) {}

SequenceKv& SequenceKv::operator=(SequenceKv&& other) noexcept {
  if (this != &other) {
    Clear();
    pool_ = other.pool_;
    blocks_ = std::exchange(other.blocks_, {});
  }
  return *this;
}

BlockSlots& SequenceKv::Grow(int i) {
  if (i >= num_blocks()) blocks_.resize(i + 1);
  return blocks_[i];
}

bool SequenceKv::EnsureBlock(int i) {
  if (i < num_blocks() && blocks_[i].block >= 0) return true;
  const int32_t id = pool_->AllocateBlock();
  if (id < 0) return false;  // the table does not grow by what could not be had
  Grow(i).block = id;
  return true;
}

bool SequenceKv::EnsurePage(int i) {
  if (i < num_blocks() && blocks_[i].page >= 0) return true;
  const int32_t id = pool_->AllocatePage();
  if (id < 0) return false;
  Grow(i).page = id;
  return true;
}

void SequenceKv::ReleaseBlock(int i) {
  if (i >= num_blocks() || blocks_[i].block < 0) return;
  pool_->FreeBlock(std::exchange(blocks_[i].block, -1));
}

void SequenceKv::ReleasePage(int i) {
  if (i >= num_blocks() || blocks_[i].page < 0) return;
  pool_->FreePage(std::exchange(blocks_[i].page, -1));
}

void SequenceKv::Clear() {
  for (int i = 0; i < num_blocks(); ++i) {
    ReleaseBlock(i);
    ReleasePage(i);
  }
  blocks_.clear();
}

}  // namespace oscarkv
