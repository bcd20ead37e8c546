#include "cli/kv_size.h"

#include <algorithm>

#include "codec/block_format.h"

namespace oscarkv::cli {

KvSize ComputeKvSize(const kernels::KvShape& shape, int64_t context, bool coded) {
  constexpr int64_t kBlock = kernels::kPageTokens, kSinkBlocks = 1, kWindowBlocks = 256 / kBlock;
  const uint64_t bf16 = BlockBytes(BlockBody::kBf16, shape);
  const uint64_t page = coded ? BlockBytes(BlockBody::kPage, shape) : bf16;
  const int64_t full = context / kBlock;
  const int64_t partial = context % kBlock != 0;
  const auto sink = static_cast<uint64_t>(std::min(full, kSinkBlocks));
  const auto pages = static_cast<uint64_t>(full) - sink;
  // Of the sink there is a block in bf16 anyway; without pages of all others, too.
  const int64_t window = coded ? std::min<int64_t>(static_cast<int64_t>(pages), kWindowBlocks) : 0;
  KvSize size;
  size.token_bytes_stored = static_cast<double>(page) / kBlock;
  size.token_bytes_bf16 = static_cast<double>(bf16) / kBlock;
  size.user_bytes_stored = sink * bf16 + pages * page;
  size.user_bytes_handover = static_cast<uint64_t>(window + partial) * bf16;
  size.user_bytes_bf16 = static_cast<uint64_t>(full + partial) * bf16;
  // The ring of a sequence has room for the window and one block more.
  const auto held = static_cast<uint64_t>(
      std::min(full + partial, coded ? kSinkBlocks + kWindowBlocks + 1 : full + partial));
  size.worker_bytes = held * bf16 + (coded ? pages * page : 0);
  return size;
}

}  // namespace oscarkv::cli
