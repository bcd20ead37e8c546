// The encoder with error feedback (shaped.h) on a GPU: many blocks of all kv heads of one side, of
// one layer or of several, in one launch. Every pointer is device memory; nothing allocates, waits
// or reads on the host. The bytes are those of the reference.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/q2_encode/op_cuda.h"
#include "kernels/q2_encode/shaped.h"
#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

// What a ShapedMetric, `widen` and `gain` are to the kernel: floats
// [sweep d*d][feedback d*d][weight d][ones d][ones_norm, widen, gain, 0].
constexpr size_t ShapedTableFloats(int head_dim) {
  return size_t{2} * head_dim * head_dim + 2 * head_dim + 4;
}
// Writes one table, in host memory; of `args` metric, widen and gain.
void FillShapedTable(const ShapedArgs& args, float* table);

// Strides are in elements; rows, their strides and offsets in bytes are 16-byte aligned, pages and
// tables too.
struct ShapedBatchArgs {
  int head_dim = 0;  // 64 or 128
  Side side = Side::kKey;
  int num_kv_heads = 0;
  int num_layers = 1;  // block b is of layer b % num_layers
  int num_blocks = 0;  // a multiple of num_layers; blocks of 64 tokens

  // In: token t of block b, head h stands at rows + row_begin[b] + t * row_stride + h *
  // head_stride. A block with a negative row_begin is left out.
  const Bf16* rows = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  const int64_t* row_begin = nullptr;  // [num_blocks]

  const float* tables = nullptr;  // [num_layers][num_kv_heads][ShapedTableFloats]
  int sweeps = 2;                 // 0..kMaxSweeps
  bool symmetric = false;         // as ShapedArgs::symmetric

  // Out: page-head of block b, head h at pages + page_begin[b] + h * PageHeadBytes, in bytes. The
  // other side's bytes stay.
  uint8_t* pages = nullptr;
  const int64_t* page_begin = nullptr;  // [num_blocks]

  EncodeCounters* counters = nullptr;  // or null; the caller zeroes them
  // Set to 1 for every block that has a row with Inf or NaN, otherwise left; or null. Such a row's
  // codes and scales are unspecified.
  uint32_t* block_nonfinite = nullptr;  // [num_blocks]
};

// kOk, kUnsupported (head_dim, sweeps, num_blocks) or kDevice.
KernelStatus EncodeShapedBlocks(const ShapedBatchArgs& args, Stream stream);

}  // namespace oscarkv::kernels::cuda
