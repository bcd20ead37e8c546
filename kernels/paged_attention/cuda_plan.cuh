// How a batch's work is cut into equal slices, one per thread block, on the device.
//
// The work of one (sequence, kv head) is a line of units: two for every tile (16 tokens of bf16)
// and one for every page, about proportional to bytes. The lines of all (sequence, kv head) follow
// each other; block i of n attends the units [i W / n, (i + 1) W / n) of the W in all, whatever
// (sequence, kv head) they belong to. A block's part of one line is a *segment*. A line that lies
// in several blocks is put together by the block that finishes last.
#pragma once

#include <cstdint>

#include "kernels/layout.h"

namespace oscarkv::kernels::cuda {

inline constexpr int kTileTokens = 16;
inline constexpr int kTileUnits = 2;
inline constexpr int kPlanThreads = 1024;
// Blocks get at least this much work: more of them would cost more to merge than they save.
inline constexpr int kMinUnits = 16;

struct PlanTotals {
  int64_t units;  // of the batch
  int blocks;     // that have work
};

// One sequence as every thread block needs it.
struct PlanSequence {
  int64_t first_unit;  // of its kv head 0
  int page_begin, pages;
  int bf16_begin, bf16_tokens;
  __host__ __device__ int Tiles() const { return (bf16_tokens + kTileTokens - 1) / kTileTokens; }
  __host__ __device__ int Units() const { return kTileUnits * Tiles() + pages; }
};

// The blocks that one line lies in.
struct PlanLine {
  int first_block, blocks;
};

// Where one thread block starts, and how many units it has.
struct PlanSlice {
  PlanSequence sequence;
  PlanLine line;
  int sequence_index, head, first_unit;  // first_unit within the line
  int units;
};
static_assert(sizeof(PlanSequence) == 24 && sizeof(PlanSlice) == 48);

// First unit of block i, and the last block whose first unit is at or before `unit`.
__host__ __device__ inline int64_t FirstUnit(const PlanTotals& plan, int block) {
  return block * plan.units / plan.blocks;
}
__host__ __device__ inline int BlockOf(const PlanTotals& plan, int64_t unit) {
  return static_cast<int>(((unit + 1) * plan.blocks - 1) / plan.units);
}

// The workspace: device addresses, the same for Plan and Run as long as num_seqs is.
struct Workspace {
  PlanSlice* slices;        // [blocks]
  float2* partial_stats;    // [2 blocks][heads]: maximum (base 2) and sum
  float4* partial_out;      // [2 blocks][elements]
  PlanSequence* sequences;  // [num_seqs]
  PlanLine* lines;          // [num_seqs][num_kv_heads]
  int* arrivals;            // [num_seqs][num_kv_heads]: blocks that have stored their part
};

}  // namespace oscarkv::kernels::cuda
