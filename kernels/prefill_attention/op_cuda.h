// Prefill attention of one layer on a GPU, straight over a KV pool: what op.h computes, with keys
// and values in bf16 blocks wherever they lie.
//
// Query row i stands at position start + i and attends positions 0..start+i. For a query tile Q =
// position / 64 the keys of block B are block history_ids[B] if history is given and 1 <= B <= Q -
// window_blocks - 1, else block exact_ids[B]. An id >= 0 is a slot of `pool`, a negative one slot
// ~id of `scratch`; both hold blocks [K,V][kv_head][64][head_dim] of bf16. Rows at start +
// num_queries and beyond are not read.
//
// Products of bf16 operands (q rounded once, weights once), sums in fp32: relative error (2-norm of
// a row) below 1e-2 against float64. Inf or NaN in a row of K or V spreads to the queries that
// attend it. Every pointer is device memory; nothing allocates, waits or reads on the host.
#pragma once

#include <cstdint>

#include "kernels/elementwise/op_cuda.h"
#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

struct PagedPrefillArgs {
  int head_dim = 0;  // 64 or 128
  int num_kv_heads = 0;
  int group = 0;    // query heads per kv head, 1..16
  float scale = 0;  // usually 1 / sqrt(head_dim)
  int start = 0;
  int num_queries = 0;
  int window_blocks = 0;
  const float* q = nullptr;  // [num_queries][num_kv_heads * group][head_dim]
  MutableElements out;       // likewise

  const uint8_t* pool = nullptr;  // this layer of slot 0; 16-byte aligned, as the strides are
  int64_t pool_stride = 0;        // bytes from slot to slot
  const uint8_t* scratch = nullptr;
  int64_t scratch_stride = 0;
  const int32_t* exact_ids = nullptr;    // [blocks up to the last query's]
  const int32_t* history_ids = nullptr;  // [likewise; those used], or null: exact everywhere
};

// kOk, kUnsupported (shape) or kDevice.
KernelStatus PagedPrefillAttention(const PagedPrefillArgs& args, Stream stream);

// Pages to bf16 blocks, both sides: page_ids[i] of `pages` (this layer of page 0; page_stride bytes
// apart) to block i of `blocks` [K,V][kv_head][64][head_dim], block_stride bytes apart. Values are
// op.h's DecodePageHeadBf16, bit for bit.
struct DecodePagesArgs {
  int head_dim = 0;
  int num_kv_heads = 0;
  int num_pages = 0;
  bool offsets = true;  // pages have offset planes (layout.h)
  const uint8_t* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;  // [num_pages]
  uint8_t* blocks = nullptr;
  int64_t block_stride = 0;
};
KernelStatus DecodePages(const DecodePagesArgs& args, Stream stream);

}  // namespace oscarkv::kernels::cuda
