// What stands between the QKV product and attention in a decode step, in one launch per layer: the
// norms of q and k, RoPE, the key rotation of both, q for the attention kernel, and the new token's
// rows of K and V into their bf16 blocks.
//
// q stays fp32 (a rotated q rounded to bf16 would cost more accuracy than the 2-bit codes' own
// arithmetic): the rotation is three products of bf16 terms, x_high M_high + x_low M_high + x_high
// M_low, summed in fp32, within 3e-5 of float64 (2-norm per row). k and v are rounded to bf16 once.
//
// Every pointer is device memory; nothing allocates, waits or reads on the host.
#pragma once

#include <cstdint>

#include "kernels/elementwise/op_cuda.h"
#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

struct AttentionInputArgs {
  int head_dim = 0;  // 64 or 128
  int num_kv_heads = 0;
  int group = 0;       // query heads per kv head
  int num_tokens = 0;  // of different sequences, or of one

  // [num_tokens][query heads, then K heads, then V heads][head_dim], rows row_stride elements
  // apart.
  Elements qkv;
  int64_t row_stride = 0;
  // Added to qkv, or null: a second product of the same layout and type, and a bias [all heads *
  // head_dim].
  const void* qkv_rest = nullptr;
  const float* bias = nullptr;

  const float* q_norm = nullptr;  // [head_dim], weights of RMSNorm; both or neither null: no norm
  const float* k_norm = nullptr;
  float eps = 0;

  // As elementwise/op.h's Rope. half_dim 0: none.
  const int32_t* positions = nullptr;  // [num_tokens]
  const float* cos_table = nullptr;
  const float* sin_table = nullptr;
  int half_dim = 0;  // at most head_dim / 2

  // From PrepareTransforms (q2_encode/op_cuda.h) for bf16; null: no rotation. Query heads turn with
  // their kv head's. Read before kernels launched before have ended: prepare it earlier than by the
  // kernel right before this one.
  const void* transform = nullptr;
  int64_t transform_head_stride = 0;  // bytes from kv head to kv head; 0: one matrix for all
  // With a transform: another one for queries, of the same stride; null: they take the keys'.
  const void* query_transform = nullptr;
  // With a transform: subtracted from keys before it, [num_kv_heads][head_dim]; or null.
  const float* key_mean = nullptr;

  float* q = nullptr;  // out, [num_tokens][query heads][head_dim]

  // Out: token t's K row of head h at kv + kv_row[t] + h * 64 * head_dim, its V row value_offset
  // elements further: rows of bf16 blocks as block_format.md has them. Negative kv_row: not stored.
  Bf16* kv = nullptr;
  const int64_t* kv_row = nullptr;  // [num_tokens], even
  int64_t value_offset = 0;         // even
};

// kOk, kUnsupported or kDevice. Meant for decode steps: each 16 rows of a kv head read its matrix
// from the L2 cache.
KernelStatus PrepareAttentionInputs(const AttentionInputArgs& args, Stream stream);

}  // namespace oscarkv::kernels::cuda
