// The encoder on a GPU: many blocks of all kv heads of one layer and one side (K or V) in one
// launch. Every pointer is device memory. Nothing here allocates, waits or reads anything on the
// host, so that all of it may be captured in a CUDA graph.
//
// What it computes is op.h's EncodePageHead for each (block, kv head). Without a transform the
// bytes are the reference's. With one they are the reference's up to the rotated rows: y is summed
// in fp32 by the tensor cores in another order, over a matrix held to 16 significant bits (bf16
// rows) or 22 (fp16 rows), and then rounded to bf16 once; the codes are exactly those of these rows
// (`rotated` gives them). So a row differs from the reference's only where y lies that close to a
// tie of bf16, and a code only where such a row lies at a tie of the quantiser.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

enum class RowType { kBf16, kFp16 };

// A transform as the kernel wants it: [PreparedTransformBytes] per matrix, 128-byte aligned.
constexpr size_t PreparedTransformBytes(int head_dim) {
  return size_t{4} * head_dim * head_dim;
}

// matrices: n fp32 [head_dim, head_dim] row-major (y = x M), finite and within the range of
// `type`. prepared: n times PreparedTransformBytes, for rows of that type.
KernelStatus PrepareTransforms(int head_dim, RowType type, const float* matrices, int n,
                               void* prepared, Stream stream);

// What a launch adds to; the caller zeroes it.
struct EncodeCounters {
  unsigned long long nonfinite_rows = 0;  // rows with Inf or NaN (after the transform, if any)
  unsigned long long clamped_fp16 = 0;    // as EncodeStats::clamped_fp16
};

// Strides are in elements unless said otherwise. Rows, and their strides and offsets in bytes, are
// 16-byte aligned; pages too.
struct EncodeBatchArgs {
  int head_dim = 0;  // 64 or 128
  Side side = Side::kKey;
  int num_kv_heads = 0;
  int num_blocks = 0;  // blocks of 64 tokens, a last partial one included
  // Rows of all blocks, when row_begin is null; 64 (num_blocks - 1) < num_tokens <= 64 num_blocks.
  // The partial block's rows are transformed but not encoded: its page stays.
  int64_t num_tokens = 0;

  // In: token t of block b, head h stands at rows + begin(b) + t * row_stride + h * head_stride,
  // where begin(b) = row_begin[b], or 64 b * row_stride if row_begin is null. A block with a
  // negative row_begin is left out: a graph's launch has a fixed number of blocks. With row_begin
  // every block is full.
  const void* rows = nullptr;
  RowType row_type = RowType::kBf16;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  const int64_t* row_begin = nullptr;  // [num_blocks] or null

  // From PrepareTransforms for row_type; null: y = x (fp16 rows are rounded to bf16).
  const void* transform = nullptr;
  int64_t transform_head_stride = 0;  // bytes from head to head; 0: one matrix for all

  float clip_ratio = 0;  // as in op.h

  // Out, y as bf16 with the same strides and row_begin, or null. May be `rows` itself (bf16).
  Bf16* rotated = nullptr;

  // Out: page-head of block b, head h at pages + page(b) + h * PageHeadBytes, page(b) =
  // page_begin[b] or b * page_stride (bytes). The other side's bytes stay. Null: only `rotated`.
  uint8_t* pages = nullptr;
  int64_t page_stride = 0;
  const int64_t* page_begin = nullptr;  // [num_blocks] or null

  EncodeCounters* counters = nullptr;  // or null
  // Set to 1 for every block that has a row with Inf or NaN, otherwise left; or null. Such a row's
  // codes, scale and offset are unspecified; other rows are not affected.
  uint32_t* block_nonfinite = nullptr;  // [num_blocks]
};

// kOk, kUnsupported (head_dim, or fp16 rows to be rotated in place), or kDevice.
KernelStatus EncodeBlocks(const EncodeBatchArgs& args, Stream stream);

}  // namespace oscarkv::kernels::cuda
