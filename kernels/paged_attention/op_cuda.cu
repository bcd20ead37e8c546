// Paged decode attention on a GPU. See cuda_plan.cuh for how the work is cut, cuda_warp.cuh for
// what a warp computes, cuda_merge.cuh for how parts are put together.
#include "kernels/paged_attention/op_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_device.h"
#include "kernels/cuda_launch.cuh"
#include "kernels/paged_attention/cuda_merge.cuh"
#include "kernels/paged_attention/cuda_plan.cuh"
#include "kernels/paged_attention/cuda_softmax.cuh"
#include "kernels/paged_attention/cuda_warp.cuh"

namespace oscarkv::kernels::cuda {
namespace {

// The part of `segment`'s line from `first_unit` on, of at most `units` units.
__device__ int CutSegment(int first_unit, int units, Segment* segment) {
  const int tiles = segment->sequence.Tiles(), all = segment->sequence.Units();
  const int end = min(first_unit + units, all);
  const auto tile_at = [tiles](int unit) {
    return min((unit + kTileUnits - 1) / kTileUnits, tiles);
  };
  const auto page_at = [tiles](int unit) { return max(unit - kTileUnits * tiles, 0); };
  segment->tile_begin = tile_at(first_unit);
  segment->tile_end = tile_at(end);
  segment->page_begin = page_at(first_unit);
  segment->page_end = page_at(end);
  return end - first_unit;
}

// The next (sequence, kv head) that has work.
__device__ void NextLine(const Workspace& workspace, int num_kv_heads, Segment* segment) {
  if (++segment->head == num_kv_heads) {
    segment->head = 0;
    do {
      segment->sequence = workspace.sequences[++segment->sequence_index];
    } while (segment->sequence.Units() == 0);
  }
  segment->line = workspace.lines[segment->sequence_index * num_kv_heads + segment->head];
}

template <bool kFine, class C>
__device__ __forceinline__ void AttendPages(int pages, Ring<C>* ring, Softmax<C>* softmax) {
#pragma unroll 1
  for (int i = 0; i < pages; ++i) {
    const uint32_t page = ring->WaitPage();
    softmax->template AddPage<kFine>(static_cast<const uint8_t*>(__cvta_shared_to_generic(page)));
    ring->ReleasePage();
    if (i % C::kFlushPages == C::kFlushPages - 1) softmax->template Flush<true>();
  }
}

// Lets the L2 cache fetch what this thread block will read first, while kernels before this one
// still run: one unit of the block's first line to a thread. Kernels before this one may even be
// writing the plan, or the last block: nothing is used here of what is read, a plan that is not
// this one's costs a useless fetch of the pools', and the cache is where writes go.
template <class C>
__device__ __forceinline__ void PrefetchSlice(const PagedAttentionArgs& args,
                                              const Workspace& workspace) {
#if OSCARKV_SM90
  constexpr int kUnits = C::kWarps * C::kStages;  // as many as the rings hold
  PlanSlice slice;
  static_assert(sizeof slice == 3 * sizeof(int4));
  const auto* from = reinterpret_cast<const int4*>(workspace.slices + blockIdx.x);
  int4 words[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) words[i] = __ldcg(from + i);  // past the L1 cache: it is read again
  memcpy(&slice, words, sizeof slice);
  const int unit = slice.first_unit + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kUnits || static_cast<int>(threadIdx.x) >= slice.units ||
      slice.first_unit < 0 || unit >= slice.sequence.Units() || slice.head < 0 ||
      slice.head >= args.num_kv_heads)
    return;
  const int tile_units = kTileUnits * slice.sequence.Tiles();
  if (unit >= tile_units) {
    const int at = slice.sequence.page_begin + unit - tile_units;
    if (at < 0 || at >= args.page_begin[args.num_seqs]) return;
    PrefetchBulk(args.page_pool + args.page_ids[at] * args.page_stride + slice.head * C::kPageBytes,
                 C::kPageBytes);
  } else {
    constexpr int kTiles = kPageTokens / kTileTokens;
    const int tile = unit / kTileUnits, side = unit % kTileUnits;
    const int at = slice.sequence.bf16_begin + tile / kTiles;
    if (at < 0 || at >= args.bf16_begin[args.num_seqs]) return;
    const int64_t row =
        int64_t{side * args.num_kv_heads + slice.head} * kPageTokens + tile % kTiles * kTileTokens;
    PrefetchBulk(args.bf16_pool + args.bf16_ids[at] * args.bf16_stride + 2 * C::kHeadDim * row,
                 C::kTileBytes);
  }
#endif
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm)
    AttendKernel(const __grid_constant__ PagedAttentionArgs args,
                 const __grid_constant__ Workspace workspace) {
  extern __shared__ __align__(128) uint8_t memory[];
  auto* shared = reinterpret_cast<SharedMemory<C>*>(memory);
  const int warp = threadIdx.x / 32;
  LetNextKernelStart();
  PrefetchSlice<C>(args, workspace);
  WaitForPriorKernels();
  const PlanSlice slice = workspace.slices[blockIdx.x];
  int units = slice.units;
  if (units == 0) return;

  Segment segment{slice.sequence, slice.line, slice.sequence_index, slice.head, 0, 0, 0, 0};
  units -= CutSegment(slice.first_unit, units, &segment);
  Ring<C> ring(args, shared, warp);
  Softmax<C> softmax(args, shared, warp);
  Merger<C> merger(args, workspace, shared);
  ring.Open(segment);
  for (;;) {
    softmax.Start(segment);
    const int tiles = ring.own_tiles(), pages = ring.own_pages();
    for (int i = 0; i < tiles; ++i) {
      softmax.AddTileScores(ring.WaitTile(), ring.TileTokens(i));
      ring.ReleaseTile();
      softmax.AddTileOut(ring.WaitTile());
      ring.ReleaseTile();
      if (i % C::kFlushPages == C::kFlushPages - 1) softmax.template Flush<false>();
    }
    if (tiles > 0) softmax.template Flush<false>();
    softmax.StartPages();
    ring.StartPages();
    if (softmax.fine()) {
      AttendPages<true>(pages, &ring, &softmax);
    } else {
      AttendPages<false>(pages, &ring, &softmax);
    }
    softmax.Close();

    // The next segment's first loads run while this one is put together.
    const Segment done = segment;
    const bool more = units > 0;
    if (more) {
      NextLine(workspace, args.num_kv_heads, &segment);
      units -= CutSegment(0, units, &segment);
      ring.Open(segment);
    }
    merger.Finish(done);
    if (!more) return;
  }
}

__device__ PlanLine LineOf(const PlanTotals& totals, const PlanSequence& sequence, int head) {
  const int64_t begin = sequence.first_unit + int64_t{head} * sequence.Units();
  const int first = BlockOf(totals, begin);
  return {first, BlockOf(totals, begin + sequence.Units() - 1) - first + 1};
}

// One block. Exclusive sums over the sequences' units, then every slice by binary search.
__global__ void __launch_bounds__(kPlanThreads)
    PlanKernel(const __grid_constant__ PagedAttentionArgs args,
               const __grid_constant__ Workspace workspace, int max_blocks) {
  __shared__ int64_t sums[kPlanThreads];
  __shared__ PlanTotals totals;
  const int t = threadIdx.x, heads = args.num_kv_heads, n = args.num_seqs;
  const int share = (n + kPlanThreads - 1) / kPlanThreads;
  const int begin = min(t * share, n), end = min(begin + share, n);
  int64_t units = 0;
  for (int s = begin; s < end; ++s) {
    PlanSequence sequence;
    sequence.page_begin = args.page_begin[s];
    sequence.pages = args.page_begin[s + 1] - sequence.page_begin;
    sequence.bf16_begin = args.bf16_begin[s];
    const int blocks = args.bf16_begin[s + 1] - sequence.bf16_begin;
    sequence.bf16_tokens = blocks > 0 ? kPageTokens * (blocks - 1) + args.last_tokens[s] : 0;
    sequence.first_unit = units;  // from this thread's first sequence on
    workspace.sequences[s] = sequence;
    units += int64_t{sequence.Units()} * heads;
  }
  sums[t] = units;
  __syncthreads();
  for (int distance = 1; distance < kPlanThreads; distance *= 2) {
    const int64_t before = t >= distance ? sums[t - distance] : 0;
    __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  for (int s = begin; s < end; ++s) workspace.sequences[s].first_unit += sums[t] - units;
  if (t == 0) {
    totals.units = sums[kPlanThreads - 1];
    // A multiple of the lines, if there are more blocks than lines: lines of equal length are then
    // cut at their ends, and no block has to start twice.
    const int64_t lines = int64_t{n} * heads;
    const int64_t useful = min((totals.units + kMinUnits - 1) / kMinUnits, int64_t{max_blocks});
    totals.blocks = static_cast<int>(useful > lines ? useful / lines * lines : useful);
  }
  __syncthreads();

  for (int i = t; i < n * heads; i += kPlanThreads) {
    const PlanSequence& sequence = workspace.sequences[i / heads];
    workspace.arrivals[i] = 0;
    if (sequence.Units() > 0) workspace.lines[i] = LineOf(totals, sequence, i % heads);
  }
  for (int block = t; block < max_blocks; block += kPlanThreads) {
    PlanSlice slice{};
    if (block < totals.blocks) {
      const int64_t first = FirstUnit(totals, block);
      int low = 0, high = n;  // the last sequence that starts at or before `first`
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (workspace.sequences[middle].first_unit <= first ? low : high) = middle;
      }
      slice.sequence = workspace.sequences[low];
      slice.sequence_index = low;
      const int64_t within = first - slice.sequence.first_unit;
      slice.head = static_cast<int>(within / slice.sequence.Units());
      slice.first_unit = static_cast<int>(within % slice.sequence.Units());
      slice.line = LineOf(totals, slice.sequence, slice.head);
      slice.units = static_cast<int>(FirstUnit(totals, block + 1) - first);
    }
    workspace.slices[block] = slice;
  }
}

// A kernel for a shape, and how it is launched.
struct Variant {
  void (*kernel)(PagedAttentionArgs, Workspace);
  int shared_bytes, threads, heads, elements;
};
template <class C>
Variant VariantOf() {
  return {&AttendKernel<C>, static_cast<int>(sizeof(SharedMemory<C>)), C::kThreads, C::kHeads,
          C::kElements};
}
template <int kHeadDim, bool kOffsets>
Variant VariantOf(int group) {
  if (group <= 4) return VariantOf<Config<kHeadDim, 1, true, kOffsets>>();
  if (group <= 8) return VariantOf<Config<kHeadDim, 1, false, kOffsets>>();
  return VariantOf<Config<kHeadDim, 2, false, kOffsets>>();
}
Variant VariantOf(int head_dim, int group, bool offsets) {
  if (head_dim == 128) return offsets ? VariantOf<128, true>(group) : VariantOf<128, false>(group);
  return offsets ? VariantOf<64, true>(group) : VariantOf<64, false>(group);
}

// Thread blocks that run at the same time on the current device.
KernelStatus ResidentBlocks(const Variant& variant, int* blocks) {
  int device = 0, sms = 0, per_sm = 0;
  KernelStatus status = Check(cudaGetDevice(&device), "cudaGetDevice");
  if (status != KernelStatus::kOk) return status;
  status = Check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
                 "cudaDeviceGetAttribute");
  if (status != KernelStatus::kOk) return status;
  status = Check(cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      variant.shared_bytes),
                 "shared memory of the attention kernel");
  if (status != KernelStatus::kOk) return status;
  status = Check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                     &per_sm, variant.kernel, variant.threads, variant.shared_bytes),
                 "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  *blocks = per_sm * sms;
  return status == KernelStatus::kOk && per_sm == 0 ? KernelStatus::kUnsupported : status;
}

size_t Aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// Cuts the workspace into its parts; returns its size.
size_t Layout(const Variant& variant, int blocks, int num_seqs, int num_kv_heads, void* base,
              Workspace* workspace) {
  auto* at = static_cast<uint8_t*>(base);
  const auto take = [&at]<class T>(T** part, size_t n) {
    *part = reinterpret_cast<T*>(at);
    at += Aligned(n * sizeof(T));
  };
  take(&workspace->slices, blocks);
  take(&workspace->partial_stats, size_t{2} * blocks * variant.heads);
  take(&workspace->partial_out, size_t{2} * blocks * variant.elements);
  take(&workspace->sequences, num_seqs);
  take(&workspace->lines, size_t{1} * num_seqs * num_kv_heads);
  take(&workspace->arrivals, size_t{1} * num_seqs * num_kv_heads);
  return at - static_cast<uint8_t*>(base);
}

bool IsSupported(int num_kv_heads, int group, int head_dim) {
  return IsSupportedHeadDim(head_dim) && group >= 1 && group <= kMaxGroup && num_kv_heads >= 1;
}

KernelStatus Prepare(const PagedAttentionArgs& args, void* base, Variant* variant, int* blocks,
                     Workspace* workspace) {
  if (!IsSupported(args.num_kv_heads, args.group, args.head_dim)) return KernelStatus::kUnsupported;
  *variant = VariantOf(args.head_dim, args.group, args.offsets);
  const KernelStatus status = ResidentBlocks(*variant, blocks);
  if (status == KernelStatus::kOk)
    Layout(*variant, *blocks, args.num_seqs, args.num_kv_heads, base, workspace);
  return status;
}

}  // namespace

size_t PagedAttentionWorkspaceBytes(int max_seqs, int num_kv_heads, int group, int head_dim) {
  if (!IsSupported(num_kv_heads, group, head_dim)) return 0;
  size_t most = 0;
  for (const bool offsets : {true, false}) {
    const Variant variant = VariantOf(head_dim, group, offsets);
    int blocks = 0;
    if (ResidentBlocks(variant, &blocks) != KernelStatus::kOk) return 0;
    Workspace workspace;
    most = std::max(most, Layout(variant, blocks, max_seqs, num_kv_heads, nullptr, &workspace));
  }
  return most;
}

KernelStatus PlanPagedAttention(const PagedAttentionArgs& args, void* base, Stream stream) {
  Variant variant;
  int blocks = 0;
  Workspace workspace;
  const KernelStatus status = Prepare(args, base, &variant, &blocks, &workspace);
  if (status != KernelStatus::kOk || args.num_seqs == 0) return status;
  PlanKernel<<<1, kPlanThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(args, workspace,
                                                                               blocks);
  return Check(cudaGetLastError(), "launch of the plan kernel");
}

KernelStatus RunPagedAttention(const PagedAttentionArgs& args, void* base, Stream stream) {
  Variant variant;
  int blocks = 0;
  Workspace workspace;
  const KernelStatus status = Prepare(args, base, &variant, &blocks, &workspace);
  if (status != KernelStatus::kOk || args.num_seqs == 0) return status;
  return LaunchEarly("launch of the attention kernel", variant.kernel, dim3(blocks),
                     dim3(variant.threads), variant.shared_bytes,
                     static_cast<cudaStream_t>(stream.handle), args, workspace);
}

}  // namespace oscarkv::kernels::cuda
