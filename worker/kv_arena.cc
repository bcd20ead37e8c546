#include "worker/kv_arena.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"
#include "codec/block_format.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace oscarkv::worker {
namespace {
// Slots start on such a boundary, so that huge pages can back them.
constexpr uint64_t kAlign = uint64_t{2} << 20;
uint64_t AlignUp(uint64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}
}  // namespace

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Create(const kernels::KvShape& shape,
                                                         uint64_t pages, uint64_t blocks,
                                                         Transport* transport) {
  const uint64_t headers_bytes = AlignUp((pages + blocks) * kBlockHeaderBytes);
  const uint64_t pages_bytes = AlignUp(pages * shape.PageBytes());
  const uint64_t blocks_bytes = AlignUp(blocks * shape.Bf16BlockBytes());
  auto arena = std::unique_ptr<KvArena>(new KvArena);
  // One alignment more than needed: mmap aligns to 4 KiB only.
  arena->bytes_ = headers_bytes + pages_bytes + blocks_bytes + kAlign;
  void* memory = mmap(nullptr, arena->bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no address space for a KV arena of ",
                                                     FormatBytes(arena->bytes_),
                                                     "; make the pools smaller"));
  }
  arena->base_ = static_cast<uint8_t*>(memory);
  auto* start = reinterpret_cast<uint8_t*>(AlignUp(reinterpret_cast<uintptr_t>(memory)));
  madvise(start, headers_bytes + pages_bytes + blocks_bytes,
          MADV_HUGEPAGE);  // advice: nothing depends on it
  arena->page_headers_ = start;
  arena->block_headers_ = start + pages * kBlockHeaderBytes;
  arena->pool_ = std::make_unique<KvPool>(
      shape, absl::MakeSpan(start + headers_bytes, pages * shape.PageBytes()),
      absl::MakeSpan(start + headers_bytes + pages_bytes, blocks * shape.Bf16BlockBytes()));
  if (transport != nullptr) {
    ASSIGN_OR_RETURN(arena->region_, transport->Register(absl::MakeSpan(
                                         start, headers_bytes + pages_bytes + blocks_bytes)));
  }
  return arena;
}

KvArena::~KvArena() {
  region_.reset();
  if (base_ != nullptr) munmap(base_, bytes_);
}

uint8_t* KvArena::page_header(int32_t id) const {
  return page_headers_ + static_cast<size_t>(id) * kBlockHeaderBytes;
}
uint8_t* KvArena::block_header(int32_t id) const {
  return block_headers_ + static_cast<size_t>(id) * kBlockHeaderBytes;
}

}  // namespace oscarkv::worker
