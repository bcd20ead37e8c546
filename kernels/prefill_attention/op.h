// Causal attention of a chunk of queries over all keys up to each query, one layer: fp32
// accumulation, blocked.
//
// Query row i stands at position start + i and attends positions 0..start+i. Keys come in two
// copies: `exact` and, for the canonical mode, `history` (the encode-decode copies). For a query
// tile Q = position / 64 the keys of block B are taken from history when history is given and 1 <=
// B <= Q - window_blocks - 1 (window_blocks = recent window / 64 = 4), else from exact. In both,
// rows of kv head h are at base + h * head_stride + position * head_dim.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels {

// Element type of K and V (and of the products' operands). kFp32 is for exact comparisons with
// goldens.
enum class KvType { kBf16, kFp32 };

struct PrefillAttentionArgs {
  int head_dim = 0;
  int num_kv_heads = 0;
  int group = 0;
  float scale = 0;
  int start = 0;  // position of the first query
  int num_queries = 0;
  KvType type = KvType::kBf16;
  const float* q = nullptr;  // [num_queries, num_kv_heads * group, head_dim]
  float* out = nullptr;      // [num_queries, num_kv_heads * group, head_dim]
  const void* k_exact =
      nullptr;  // [kv_head][>= start + num_queries][head_dim], heads head_stride elements apart
  const void* v_exact = nullptr;
  const void* k_history = nullptr;  // the same shape, or null: exact everywhere
  const void* v_history = nullptr;
  int64_t head_stride = 0;  // elements
  int window_blocks = 4;
};

// Matrix products by oneDNN (kCpu); kRef computes in float64. `executor` may be null.
KernelStatus PrefillAttention(Backend backend, const PrefillAttentionArgs& args,
                              Executor* executor);

}  // namespace oscarkv::kernels
