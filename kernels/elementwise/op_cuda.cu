#include "kernels/elementwise/op_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda_device.h"
#include "kernels/cuda_launch.cuh"
#include "kernels/elementwise/cuda_elements.cuh"
#include "kernels/layout.h"

namespace oscarkv::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 4096;   // of element loops, which stride on
constexpr int kRowThreads = 1024;  // of kernels with a thread block per row: a decode step has few
constexpr int kRowCache = 8;       // values of a row that a thread keeps in registers

cudaStream_t ToCuda(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

int BlocksFor(int64_t elements) {
  return static_cast<int>(std::clamp<int64_t>((elements + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

// The sum over the kRowThreads of the thread block, for every one of them.
__device__ float BlockSum(float v) {
  __shared__ float parts[kRowThreads / 32];
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2)
    v += __shfl_xor_sync(kAllLanes, v, lane_mask);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  v = parts[threadIdx.x % 32];
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2)
    v += __shfl_xor_sync(kAllLanes, v, lane_mask);
  return v;
}

// One thread block per row. The loads of the first kRowCache rounds do not wait for each other.
template <class Delta, class Out>
__global__ void __launch_bounds__(kRowThreads)
    AddRmsNormKernel(float* x, const Delta* delta, const float* __restrict__ weight, float eps,
                     int64_t dim, Out* __restrict__ y, Bf16* __restrict__ rest) {
  LetNextKernelStart();  // a matrix product, which loads weights meanwhile
  WaitForPriorKernels();
  x += blockIdx.x * dim;
  float cache[kRowCache] = {};
#pragma unroll
  for (int i = 0; i < kRowCache; ++i) {
    const int64_t c = threadIdx.x + int64_t{i} * kRowThreads;
    if (c >= dim) continue;
    cache[i] = x[c];
    if (delta != nullptr) cache[i] += LoadElement(delta + blockIdx.x * dim + c);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kRowCache; ++i) {
    const int64_t c = threadIdx.x + int64_t{i} * kRowThreads;
    if (delta != nullptr && c < dim) x[c] = cache[i];
    sum += cache[i] * cache[i];
  }
  for (int64_t c = threadIdx.x + int64_t{kRowCache} * kRowThreads; c < dim; c += kRowThreads) {
    float v = x[c];
    if (delta != nullptr) x[c] = v += LoadElement(delta + blockIdx.x * dim + c);
    sum += v * v;
  }
  if (y == nullptr) return;
  const float factor = 1 / sqrtf(BlockSum(sum) / static_cast<float>(dim) + eps);
  y += blockIdx.x * dim;
  const auto store = [&](int64_t c, float v) {
    StoreElement(y + c, v);
    if constexpr (sizeof(Out) == sizeof(Bf16)) {
      if (rest != nullptr)
        StoreElement(rest + blockIdx.x * dim + c, v - __uint_as_float(PackBf16(v, 0) << 16));
    }
  };
#pragma unroll
  for (int i = 0; i < kRowCache; ++i) {
    const int64_t c = threadIdx.x + int64_t{i} * kRowThreads;
    if (c < dim) store(c, cache[i] * factor * weight[c]);
  }
  for (int64_t c = threadIdx.x + int64_t{kRowCache} * kRowThreads; c < dim; c += kRowThreads)
    store(c, x[c] * factor * weight[c]);
}

// SplitMix64: a counter's hash.
__device__ uint64_t Hash(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
// In [0, 1).
__device__ float Unit(uint64_t x) {
  return static_cast<float>(Hash(x) >> 40) * 0x1p-24f;
}

template <class Out>
__global__ void FillUniformKernel(Out* y, int64_t n, float range, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * kThreads)
    StoreElement(y + i, range * (2 * Unit(seed + i) - 1));
}

__global__ void FillPagesKernel(uint8_t* bytes, int head_dim, bool with_offsets, uint64_t seed) {
  const int64_t words = PageHeadBytes(head_dim, with_offsets) / 4, codes = MetaOffset(head_dim) / 4;
  auto* page = reinterpret_cast<uint32_t*>(bytes) + blockIdx.x * words;
  const uint64_t first = seed + blockIdx.x * words;
  constexpr int kPlane = kPageTokens / 2;  // words
  for (int64_t i = threadIdx.x; i < words; i += kThreads) {
    const bool offsets = with_offsets && i >= codes && (i - codes) / kPlane % 2 == 1;
    const uint64_t at = first + (offsets ? i - kPlane : i);  // offsets take their scales' factors
    const float sign = offsets ? -1.5f : 1;
    page[i] = i < codes ? static_cast<uint32_t>(Hash(at))
                        : PackFp16(sign * (0.5f + Unit(at)), sign * (0.5f + Unit(~at)));
  }
}

template <class In, class Out>
__global__ void SiluGateKernel(const In* gate_up, int64_t n, int64_t width, Out* y) {
  LetNextKernelStart();
  WaitForPriorKernels();
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n * width;
       i += int64_t{gridDim.x} * kThreads) {
    const In* at = gate_up + i / width * 2 * width + i % width;
    StoreElement(y + i, SiluGated(LoadElement(at), LoadElement(at + width)));
  }
}

template <class In>
__global__ void EmbedKernel(const In* table, int64_t rows, int64_t dim, const int32_t* tokens,
                            float* x) {
  const int64_t token = tokens[blockIdx.x];
  for (int64_t c = threadIdx.x; c < dim; c += kThreads) {
    x[blockIdx.x * dim + c] =
        token >= 0 && token < rows ? LoadElement(table + token * dim + c) : 0.0f;
  }
}

struct Candidate {
  float value;
  int64_t index;
};

__device__ Candidate Better(Candidate a, Candidate b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

// One thread block per row.
__global__ void __launch_bounds__(kRowThreads)
    ArgMaxKernel(const float* __restrict__ logits, int64_t vocab, int32_t* token) {
  constexpr int64_t kNone = INT64_MAX;
  logits += blockIdx.x * vocab;
  Candidate best = {-INFINITY, kNone};
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < vocab; i += kRowThreads) {
    const float v = logits[i];
    if (v > best.value) best = {v, i};  // false for NaN
  }
  __shared__ Candidate parts[kRowThreads];
  parts[threadIdx.x] = best;
  __syncthreads();
  for (int half = kRowThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      parts[threadIdx.x] = Better(parts[threadIdx.x], parts[threadIdx.x + half]);
    __syncthreads();
  }
  if (threadIdx.x == 0)
    token[blockIdx.x] = parts[0].index == kNone ? -1 : static_cast<int32_t>(parts[0].index);
}

}  // namespace

KernelStatus AddRmsNorm(float* x, Elements delta, const float* weight, float eps, int64_t n,
                        int64_t dim, MutableElements y, Bf16* rest, Stream stream) {
  if (n <= 0) return KernelStatus::kOk;
  KernelStatus status = KernelStatus::kOk;
  WithType(delta.data, delta.type, [&](auto* d) {
    WithType(y.data, y.type, [&](auto* out) {
      using Delta = std::remove_const_t<std::remove_pointer_t<decltype(d)>>;
      using Out = std::remove_pointer_t<decltype(out)>;
      status = LaunchEarly("AddRmsNormKernel", AddRmsNormKernel<Delta, Out>,
                           dim3(static_cast<unsigned>(n)), dim3(kRowThreads), 0, ToCuda(stream), x,
                           d, weight, eps, dim, out, rest);
    });
  });
  return status;
}

KernelStatus SiluGate(Elements gate_up, int64_t n, int64_t width, MutableElements y,
                      Stream stream) {
  if (n <= 0 || width <= 0) return KernelStatus::kOk;
  KernelStatus status = KernelStatus::kOk;
  WithType(gate_up.data, gate_up.type, [&](auto* in) {
    WithType(y.data, y.type, [&](auto* out) {
      using In = std::remove_const_t<std::remove_pointer_t<decltype(in)>>;
      using Out = std::remove_pointer_t<decltype(out)>;
      status = LaunchEarly("SiluGateKernel", SiluGateKernel<In, Out>, dim3(BlocksFor(n * width)),
                           dim3(kThreads), 0, ToCuda(stream), in, n, width, out);
    });
  });
  return status;
}

KernelStatus FillUniform(MutableElements y, int64_t n, float range, uint64_t seed, Stream stream) {
  if (n <= 0) return KernelStatus::kOk;
  WithType(y.data, y.type, [&](auto* out) {
    FillUniformKernel<<<BlocksFor(n), kThreads, 0, ToCuda(stream)>>>(out, n, range, seed);
  });
  return Check(cudaGetLastError(), "FillUniformKernel");
}

KernelStatus FillPages(uint8_t* bytes, int64_t n, int head_dim, bool offsets, uint64_t seed,
                       Stream stream) {
  if (!IsSupportedHeadDim(head_dim) || n > INT32_MAX) return KernelStatus::kUnsupported;
  if (n <= 0) return KernelStatus::kOk;
  FillPagesKernel<<<static_cast<unsigned>(n), kThreads, 0, ToCuda(stream)>>>(bytes, head_dim,
                                                                             offsets, seed);
  return Check(cudaGetLastError(), "FillPagesKernel");
}

KernelStatus Embed(Elements table, int64_t rows, int64_t dim, const int32_t* tokens, int64_t n,
                   float* x, Stream stream) {
  if (n <= 0) return KernelStatus::kOk;
  WithType(table.data, table.type, [&](auto* t) {
    EmbedKernel<<<static_cast<unsigned>(n), kThreads, 0, ToCuda(stream)>>>(t, rows, dim, tokens, x);
  });
  return Check(cudaGetLastError(), "EmbedKernel");
}

KernelStatus ArgMax(const float* logits, int64_t n, int64_t vocab, int32_t* token, Stream stream) {
  if (n <= 0) return KernelStatus::kOk;
  ArgMaxKernel<<<static_cast<unsigned>(n), kRowThreads, 0, ToCuda(stream)>>>(logits, vocab, token);
  return Check(cudaGetLastError(), "ArgMaxKernel");
}

}  // namespace oscarkv::kernels::cuda
