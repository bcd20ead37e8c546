// A worker's KV memory: one aligned arena, registered with the transport once, that holds the slots
// of a KvPool and, for every slot, room for the header with which its block travels.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "model/kv_pool.h"
#include "transport/transport.h"

namespace oscarkv::worker {

// Immutable after Create but for the pool, which has its own lock.
class KvArena {
 public:
  // Room for `pages` 2-bit pages and `blocks` bf16 blocks. `transport`: may be null (streaming data
  // path); it must outlive the arena. kResourceExhausted: no such amount of address space.
  static absl::StatusOr<std::unique_ptr<KvArena>> Create(const kernels::KvShape& shape,
                                                         uint64_t pages, uint64_t blocks,
                                                         Transport* transport);
  ~KvArena();
  KvArena(const KvArena&) = delete;
  KvArena& operator=(const KvArena&) = delete;

  KvPool& pool() const { return *pool_; }
  // kBlockHeaderBytes of registered memory that belong to whoever holds the slot.
  uint8_t* page_header(int32_t id) const;
  uint8_t* block_header(int32_t id) const;
  uint64_t bytes() const { return bytes_; }

 private:
  KvArena() = default;

  uint8_t* base_ = nullptr;
  uint64_t bytes_ = 0;
  uint8_t* page_headers_ = nullptr;
  uint8_t* block_headers_ = nullptr;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<MemoryRegion> region_;
};

}  // namespace oscarkv::worker
