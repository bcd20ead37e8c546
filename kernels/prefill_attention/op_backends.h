// The implementations behind op.h; internal.
#pragma once

#include "kernels/prefill_attention/op.h"

namespace oscarkv::kernels {

// One past the last block that the queries of tile `query_tile` take from the history copies, first
// such block 1; 0: none. Blocks 1 <= B < HistoryEnd come from history, all others are exact.
inline int HistoryEnd(const PrefillAttentionArgs& args, int query_tile) {
  const int end = query_tile - args.window_blocks;
  return args.k_history != nullptr && end > 1 ? end : 0;
}

namespace ref {
KernelStatus PrefillAttention(const PrefillAttentionArgs& args, Executor* executor);
}  // namespace ref
namespace cpu {
KernelStatus PrefillAttention(const PrefillAttentionArgs& args, Executor* executor);
}  // namespace cpu
}  // namespace oscarkv::kernels
