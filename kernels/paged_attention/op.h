// Decode attention of one layer straight over a paged KV cache: one query token per sequence
// attends bf16 blocks (the sink, the recent window; for the bf16 profile every block) and 2-bit
// pages in one online-softmax pass. Nothing is dequantised to memory.
//
// For query head h = kv_head * group + i:  score_t = scale * <q_h, k_t>,  out_h = sum_t
// softmax(score)_t v_t. With k_t = codes * s_t + o_t: <q, k_t> = s_t <q, codes> + o_t sum(q); the
// scale and offset leave the inner loop.
//
// Block ids index a pool; a block's bytes are pool + id * stride. The pointers already include the
// layer's offset.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels {

struct PagedAttentionArgs {
  int head_dim = 0;  // 64 or 128
  int num_kv_heads = 0;
  int group = 0;    // query heads per kv head, 1..16
  float scale = 0;  // usually 1 / sqrt(head_dim)
  int num_seqs = 0;

  const float* q = nullptr;  // [num_seqs, num_kv_heads * group, head_dim], rotated like K
  float* out = nullptr;      // [num_seqs, num_kv_heads * group, head_dim]; null if `rounded` is not
  Bf16* rounded = nullptr;   // the same as bf16, or null; kCuda only (else kUnsupported)
  float* lse = nullptr;  // [num_seqs, num_kv_heads * group] natural log of sum exp(score); or null

  // 2-bit pages, all full: sequence s has page_ids[page_begin[s] .. page_begin[s+1]).
  const uint8_t* page_pool =
      nullptr;              // page id -> [kv_head][PageHeadBytes] at page_pool + id * page_stride
  int64_t page_stride = 0;  // bytes
  bool offsets = true;      // pages have offset planes
  const int32_t* page_ids = nullptr;
  const int32_t* page_begin = nullptr;  // [num_seqs + 1]

  // bf16 blocks: all full but the last of each sequence, which holds last_tokens[s] (1..64) tokens.
  const uint8_t* bf16_pool =
      nullptr;  // block id -> [K,V][kv_head][64][head_dim] of bf16 at bf16_pool + id * bf16_stride
  int64_t bf16_stride = 0;  // bytes
  const int32_t* bf16_ids = nullptr;
  const int32_t* bf16_begin = nullptr;   // [num_seqs + 1]
  const int32_t* last_tokens = nullptr;  // [num_seqs]
};

// Preconditions: every sequence has at least one token; shapes as stated; no scale of a page is
// negative (the encoder's are not). `executor` may be null.
// With the same arguments and number of threads the result is the same bit for bit. kCpu: relative
// error (2-norm per head) below 2e-4 against float64 on the stored codes; kRef computes in float64.
// kCuda is not here: it has a library of its own, see op_cuda.h.
KernelStatus PagedAttention(Backend backend, const PagedAttentionArgs& args, Executor* executor);

}  // namespace oscarkv::kernels
