// Putting a segment together: the warps' parts to the block's, and, for a (sequence, kv head) that
// lies in several blocks, the blocks' parts to the result, by the block that finishes last.
#pragma once

#include "kernels/elementwise/cuda_elements.cuh"
#include "kernels/paged_attention/cuda_softmax.cuh"

namespace oscarkv::kernels::cuda {

// Which heads and channels the four values of element `e` of a block's output sums are.
template <class C>
struct Element {
  int heads[2];  // of x and z, of y and w; split: the same for all
  int row0;      // channel of x
  __device__ explicit Element(int e) {
    const int lane = e & 31, vector = e >> 5, g = lane >> 2, j = lane & 3;
    if constexpr (C::kSplit) {
      heads[0] = heads[1] = j;
      row0 = 32 * vector + g;
    } else {
      heads[0] = 8 * (vector / C::kSteps) + 2 * j;
      heads[1] = heads[0] + 1;
      row0 = 16 * (vector % C::kSteps) + g;
    }
  }
  // Stores v, with x, y, z, w times factors, to rows [heads][head_dim] of out.
  template <class Out>
  __device__ void Store(float4 v, int group, Out* out) const {
    constexpr int d = C::kHeadDim;
    Out* to = out + heads[0] * d + row0;
    const auto put = [to](int at, float value) { StoreElement(to + at, value); };
    if constexpr (C::kSplit) {
      if (heads[0] >= group) return;
      put(0, v.x), put(8, v.y), put(16, v.z), put(24, v.w);
    } else {
      if (heads[0] < group) put(0, v.x), put(8, v.z);
      if (heads[1] < group) put(d, v.y), put(d + 8, v.w);
    }
  }
};

template <class C>
class Merger {
 public:
  __device__ Merger(const PagedAttentionArgs& args, const Workspace& workspace,
                    SharedMemory<C>* shared)
      : args_(args), workspace_(workspace), shared_(shared) {}

  // All warps of the block have closed; ends with every thread done with shared memory.
  __device__ void Finish(const Segment& segment) {
    __syncthreads();
    CombineStats();
    __syncthreads();
    const int line = segment.sequence_index * args_.num_kv_heads + segment.head;
    if (segment.line.blocks == 1) {
      StoreWhole(line);
    } else {
      const int block = static_cast<int>(blockIdx.x);
      StorePart(block == segment.line.first_block ? 2 * block + 1 : 2 * block);
      if (IsLast(workspace_.arrivals + line, segment.line.blocks))
        MergeParts(line, segment.line.first_block, segment.line.blocks);
    }
    __syncthreads();
  }

 private:
  // Leaves the factors of the warps' sums in shared_->max, the block's maximum of head h in
  // sum[1][h] and its sum in sum[0][h]. Eight lanes to a head.
  __device__ void CombineStats() const {
    static_assert(C::kWarps == 8);
    const int head = threadIdx.x / C::kWarps, w = threadIdx.x % C::kWarps;
    if (threadIdx.x / 32 * 4 >= C::kHeads) return;  // whole warps
    const float own = shared_->max[w][head];
    float max = own;
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2)
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, lanes));
    const float factor = own == -INFINITY ? 0 : Exp2(own - max);
    float sum = factor * shared_->sum[w][head];
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    shared_->max[w][head] = factor;
    if (w < 2) shared_->sum[w][head] = w == 0 ? sum : max;
  }
  // Of all warps, not yet divided by the sum.
  __device__ float4 CombineElement(int e, const Element<C>& element) const {
    float4 v = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      const float4 s = shared_->sums[w][e];
      const float f0 = shared_->max[w][element.heads[0]], f1 = shared_->max[w][element.heads[1]];
      v.x = fmaf(f0, s.x, v.x);
      v.y = fmaf(f1, s.y, v.y);
      v.z = fmaf(f0, s.z, v.z);
      v.w = fmaf(f1, s.w, v.w);
    }
    return v;
  }
  __device__ void StoreOut(const Element<C>& element, float4 v, int line) const {
    const int64_t at = int64_t{line} * args_.group * C::kHeadDim;
    if (args_.out != nullptr) element.Store(v, args_.group, args_.out + at);
    if (args_.rounded != nullptr) element.Store(v, args_.group, args_.rounded + at);
  }
  __device__ void StoreLse(int line, int head, float max, float sum) const {
    if (args_.lse != nullptr && head < args_.group)
      args_.lse[int64_t{line} * args_.group + head] = (max + log2f(sum)) * 0.6931471805599453f;
  }

  __device__ void StoreWhole(int line) const {
    for (int e = threadIdx.x; e < C::kElements; e += C::kThreads) {
      const Element<C> element(e);
      float4 v = CombineElement(e, element);
      const float f0 = 1 / shared_->sum[0][element.heads[0]];
      const float f1 = 1 / shared_->sum[0][element.heads[1]];
      v = {v.x * f0, v.y * f1, v.z * f0, v.w * f1};
      StoreOut(element, v, line);
    }
    if (threadIdx.x < C::kHeads)
      StoreLse(line, threadIdx.x, shared_->sum[1][threadIdx.x], shared_->sum[0][threadIdx.x]);
  }

  __device__ void StorePart(int part) const {
    for (int e = threadIdx.x; e < C::kElements; e += C::kThreads) {
      __stcg(workspace_.partial_out + int64_t{part} * C::kElements + e,
             CombineElement(e, Element<C>(e)));
    }
    if (threadIdx.x < C::kHeads) {
      __stcg(workspace_.partial_stats + part * C::kHeads + threadIdx.x,
             float2{shared_->sum[1][threadIdx.x], shared_->sum[0][threadIdx.x]});
    }
  }

  // Whether all other parts of the line are there.
  __device__ bool IsLast(int* arrivals, int parts) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();  // the whole block's stores, which the barrier put before it
      const bool last = atomicAdd(arrivals, 1) == parts - 1;
      if (last) *arrivals = 0;  // for the next layer
      shared_->is_last = last;
      __threadfence();
    }
    __syncthreads();
    return shared_->is_last;
  }

  // The line's part k is block first + k's; only the first one is not its block's first segment.
  static __device__ int Part(int first, int k) {
    return k == 0 ? 2 * first + 1 : 2 * (first + k);
  }

  __device__ void MergeParts(int line, int first, int parts) const {
    // Factors of the parts, already divided by the sum, over what were the warps' sums.
    float* factors = reinterpret_cast<float*>(shared_->sums);  // [parts][kHeads]
    for (int head = threadIdx.x / 32; head < C::kHeads; head += C::kWarps) {
      const int lane = threadIdx.x & 31;
      float max = -INFINITY, sum = 0;
      for (int k = lane; k < parts; k += 32) max = fmaxf(max, Stats(first, k, head).x);
      for (int lanes = 16; lanes > 0; lanes /= 2)
        max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, lanes));
      for (int k = lane; k < parts; k += 32) {
        const float2 stats = Stats(first, k, head);
        const float factor = stats.x == -INFINITY ? 0 : Exp2(stats.x - max);
        factors[k * C::kHeads + head] = factor;
        sum += factor * stats.y;
      }
      for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
      const float inverse = 1 / sum;
      for (int k = lane; k < parts; k += 32) factors[k * C::kHeads + head] *= inverse;
      if (lane == 0) StoreLse(line, head, max, sum);
    }
    __syncthreads();

    // Threads beyond the elements share the parts.
    constexpr int kShares = C::kThreads > C::kElements ? C::kThreads / C::kElements : 1;
    const int share = kShares == 1 ? 0 : threadIdx.x / C::kElements;
    for (int e = threadIdx.x % C::kElements; e < C::kElements; e += C::kThreads) {
      const Element<C> element(e);
      float4 v = {0, 0, 0, 0};
#pragma unroll 8
      for (int k = share; k < parts; k += kShares) {
        const float4 s =
            __ldcg(workspace_.partial_out + int64_t{Part(first, k)} * C::kElements + e);
        const float f0 = factors[k * C::kHeads + element.heads[0]];
        const float f1 = factors[k * C::kHeads + element.heads[1]];
        v.x = fmaf(f0, s.x, v.x);
        v.y = fmaf(f1, s.y, v.y);
        v.z = fmaf(f0, s.z, v.z);
        v.w = fmaf(f1, s.w, v.w);
      }
      if constexpr (kShares > 1) {
        __syncthreads();  // the factors are read; kShares > 1: all threads are in their only round
        float4* sums = shared_->sums[0];
        sums[threadIdx.x] = v;
        __syncthreads();
        if (share != 0) break;
        for (int i = 1; i < kShares; ++i) {
          const float4 s = sums[i * C::kElements + e];
          v = {v.x + s.x, v.y + s.y, v.z + s.z, v.w + s.w};
        }
      }
      StoreOut(element, v, line);
    }
  }
  __device__ float2 Stats(int first, int k, int head) const {
    return __ldcg(workspace_.partial_stats + Part(first, k) * C::kHeads + head);
  }

  const PagedAttentionArgs& args_;
  const Workspace& workspace_;
  SharedMemory<C>* const shared_;
};

}  // namespace oscarkv::kernels::cuda
