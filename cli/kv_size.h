// How much memory the KV cache of a model takes: arithmetic for `oscarkv size`. Sizes of blocks are
// those of codec/block_format.h, what is stored of a prompt that of docs/operations.md.
#pragma once

#include <cstdint>

#include "kernels/layout.h"

namespace oscarkv::cli {

struct KvSize {
  double token_bytes_stored = 0;  // of full blocks, their headers included
  double token_bytes_bf16 = 0;
  uint64_t user_bytes_stored = 0;  // a context's blocks: the sink in bf16, the others as pages
  uint64_t user_bytes_handover =
      0;                         // besides, for --handover-ttl: the window and the partial block
  uint64_t user_bytes_bf16 = 0;  // the same context with every block in bf16
  uint64_t worker_bytes =
      0;  // of an attention worker while the context is decoded: sink, window, pages
};

// coded: a profile of 2 bits, whose pages are as `shape` says; else bf16. context: tokens, at
// least 1.
KvSize ComputeKvSize(const kernels::KvShape& shape, int64_t context, bool coded);

}  // namespace oscarkv::cli
