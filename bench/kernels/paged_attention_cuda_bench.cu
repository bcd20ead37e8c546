// Times paged decode attention on a GPU as a model runs it: a captured graph of one
// launch per layer, pools in the store's order [page][layer][kv head], page ids in random order, a
// sink and a window of bf16, every layer read from memory (the layers together are several times
// the L2). Prints a table: microseconds per layer (median of replays), bytes that must be read, the
// floor at
// --gbps, and the error against a float64 kernel on the same stored codes.
//
//   kernels_paged_attention_cuda_bench [--quick] [--gbps=4640] [--only=SUBSTRING]
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda_device.h"
#include "kernels/layout.h"
#include "kernels/paged_attention/op_cuda.h"

namespace oscarkv::kernels {
namespace {

void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void Require(KernelStatus status, const char* what) {
  if (status == KernelStatus::kOk) return;
  std::fprintf(stderr, "%s: status %d %s\n", what, static_cast<int>(status), cuda::LastError());
  std::exit(1);
}

template <class T>
T* Allocate(size_t n) {
  void* p = nullptr;
  Require(cudaMalloc(&p, n * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(p);
}
template <class T>
T* Upload(const std::vector<T>& v) {
  T* p = Allocate<T>(v.size() + 1);
  Require(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return p;
}

__device__ uint32_t Hash(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ull;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dull;
  return static_cast<uint32_t>(x >> 32);
}
__device__ float Uniform(uint64_t x) {
  return static_cast<float>(Hash(x) >> 8) * 0x1p-24f;
}
__device__ float Normal(uint64_t x) {
  return sqrtf(-2 * logf(Uniform(2 * x) + 1e-7f)) * cospif(2 * Uniform(2 * x + 1));
}

// Random codes; scales as of rows of about normally distributed values, offsets about -1.5 scales.
__global__ void FillPages(uint8_t* pool, int64_t words, int head_dim) {
  const int64_t page_words = PageHeadBytes(head_dim) / 4, codes = MetaOffset(head_dim) / 4;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int at = static_cast<int>(i % page_words - codes);
    uint32_t value = Hash(i);
    if (at >= 0) {
      const bool offset = at / 32 & 1;
      __half h[2];
      for (int e = 0; e < 2; ++e) {
        const int64_t scale_index = offset ? i - 32 : i;
        const float scale = 0.5f + 0.7f * Uniform(2 * scale_index + e + 977);
        h[e] = __float2half(offset ? -scale * (1.5f + 0.2f * Normal(2 * i + e)) : scale);
      }
      std::memcpy(&value, h, 4);
    }
    reinterpret_cast<uint32_t*>(pool)[i] = value;
  }
}
__global__ void FillBf16(Bf16* pool, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x)
    pool[i] = static_cast<Bf16>(__float_as_uint(Normal(i + 12345)) >> 16);
}

// float64 attention of chosen (sequence, query head) rows, one block each, straight from layout.h.
__global__ void Reference(PagedAttentionArgs args, const int2* rows, double* out) {
  const int s = rows[blockIdx.x].x, head = rows[blockIdx.x].y, kv = head / args.group;
  const int d = args.head_dim, t = threadIdx.x, threads = blockDim.x;  // threads == 1024
  const int pages = args.page_begin[s + 1] - args.page_begin[s];
  const int blocks = args.bf16_begin[s + 1] - args.bf16_begin[s];
  const int tokens = 64 * (pages + blocks - (blocks > 0)) + (blocks > 0 ? args.last_tokens[s] : 0);
  const float* q = args.q + (int64_t{s} * args.num_kv_heads * args.group + head) * d;
  __shared__ double maxima[1024];
  const auto value = [&](int token, Side side, int c) -> double {
    const int page = token / 64, in_page = token % 64;
    if (page >= pages) {
      const auto* block = reinterpret_cast<const Bf16*>(
          args.bf16_pool + args.bf16_ids[args.bf16_begin[s] + page - pages] * args.bf16_stride);
      const int64_t row = ((side == Side::kValue ? args.num_kv_heads : 0) + kv) * 64 + in_page;
      return __uint_as_float(static_cast<uint32_t>(block[row * d + c]) << 16);
    }
    const uint8_t* at = args.page_pool +
                        args.page_ids[args.page_begin[s] + page] * args.page_stride +
                        kv * PageHeadBytes(d);
    const CodePosition p =
        side == Side::kKey ? KeyPosition(d, in_page, c) : ValuePosition(d, in_page, c);
    const auto* codes =
        reinterpret_cast<const uint32_t*>(at + (side == Side::kKey ? 0 : CodesBytes(d)));
    const auto* planes = reinterpret_cast<const __half*>(at + MetaOffset(d)) +
                         (side == Side::kKey ? 0 : 128) + MetaIndex(in_page);
    return (codes[p.word] >> p.bit & 3) * static_cast<double>(__half2float(planes[0])) +
           static_cast<double>(__half2float(planes[64]));
  };
  const auto score = [&](int token) {
    double dot = 0;
    for (int c = 0; c < d; ++c) dot += q[c] * value(token, Side::kKey, c);
    return dot * args.scale;
  };
  double max = -INFINITY;
  for (int i = t; i < tokens; i += threads) max = fmax(max, score(i));
  maxima[t] = max;
  __syncthreads();
  for (int n = threads / 2; n > 0; n /= 2) {
    if (t < n) maxima[t] = fmax(maxima[t], maxima[t + n]);
    __syncthreads();
  }
  max = maxima[0];
  __syncthreads();
  // 1024 tokens at a time; thread t then adds channel t % d of every (threads / d)-th of them.
  double sum = 0, acc = 0;
  for (int base = 0; base < tokens; base += threads) {
    const int n = min(threads, tokens - base);
    if (t < n) sum += maxima[t] = exp(score(base + t) - max);
    __syncthreads();
    for (int i = t / d; i < n; i += threads / d)
      acc += maxima[i] * value(base + i, Side::kValue, t % d);
    __syncthreads();
  }
  maxima[t] = acc;
  __syncthreads();
  if (t < d) {
    for (int i = t + d; i < threads; i += d) acc += maxima[i];
  }
  __syncthreads();
  maxima[t] = sum;
  __syncthreads();
  for (int n = threads / 2; n > 0; n /= 2) {
    if (t < n) maxima[t] += maxima[t + n];
    __syncthreads();
  }
  if (t < d) out[int64_t{blockIdx.x} * d + t] = acc / maxima[0];
}

struct Case {
  std::string name;
  int head_dim, num_kv_heads, group;
  std::vector<int> contexts;  // tokens, multiples of 64
  bool two_bit;
};

struct Result {
  double us, plan_us, bytes, error;
  int layers;
};

Result Measure(const Case& c, bool quick) {
  const KvShape shape{1, c.num_kv_heads, c.head_dim};
  std::vector<int32_t> page_begin{0}, bf16_begin{0}, last;
  for (int tokens : c.contexts) {
    const int blocks = tokens / 64, bf16 = c.two_bit ? std::min(blocks, 6) : blocks;
    page_begin.push_back(page_begin.back() + blocks - bf16);
    bf16_begin.push_back(bf16_begin.back() + bf16);
    last.push_back(64);
  }
  const int pages = page_begin.back(), blocks = bf16_begin.back();
  const double bytes = static_cast<double>(pages) * shape.PageLayerBytes() +
                       static_cast<double>(blocks) * shape.Bf16LayerBytes();
  const int layers = static_cast<int>(std::clamp(400e6 / bytes, 2.0, 36.0));
  const int64_t page_stride = static_cast<int64_t>(layers * shape.PageLayerBytes());
  const int64_t bf16_stride = static_cast<int64_t>(layers * shape.Bf16LayerBytes());
  uint8_t* page_pool = Allocate<uint8_t>(page_stride * std::max(pages, 1));
  uint8_t* bf16_pool = Allocate<uint8_t>(bf16_stride * std::max(blocks, 1));
  FillPages<<<2048, 256>>>(page_pool, page_stride * pages / 4, c.head_dim);
  FillBf16<<<2048, 256>>>(reinterpret_cast<Bf16*>(bf16_pool), bf16_stride * blocks / 2);

  std::mt19937 rng(1);
  const auto ids = [&rng](int n) {
    std::vector<int32_t> v(n);
    std::iota(v.begin(), v.end(), 0);
    std::shuffle(v.begin(), v.end(), rng);
    return v;
  };
  const int seqs = static_cast<int>(c.contexts.size()), heads = c.num_kv_heads * c.group;
  std::normal_distribution<float> normal;
  std::vector<float> q(size_t{1} * seqs * heads * c.head_dim);
  for (float& x : q) x = normal(rng);

  PagedAttentionArgs args;
  args.head_dim = c.head_dim;
  args.num_kv_heads = c.num_kv_heads;
  args.group = c.group;
  args.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  args.num_seqs = seqs;
  args.q = Upload(q);
  args.out = Allocate<float>(q.size());
  args.page_pool = page_pool;
  args.page_stride = page_stride;
  args.page_ids = Upload(ids(pages));
  args.page_begin = Upload(page_begin);
  args.bf16_pool = bf16_pool;
  args.bf16_stride = bf16_stride;
  args.bf16_ids = Upload(ids(blocks));
  args.bf16_begin = Upload(bf16_begin);
  args.last_tokens = Upload(last);
  void* workspace = Allocate<uint8_t>(
      cuda::PagedAttentionWorkspaceBytes(seqs, c.num_kv_heads, c.group, c.head_dim));
  Require(cudaMemset(args.out, 0xff, 4 * q.size()), "cudaMemset");
  Require(cudaDeviceSynchronize(), "filling the pools");

  cudaStream_t stream;
  Require(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto time = [&](int plans, int attends) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < plans; ++i)
      Require(cuda::PlanPagedAttention(args, workspace, {stream}), "plan");
    for (int i = 0; i < attends; ++i) {
      PagedAttentionArgs layer = args;
      layer.page_pool += i % layers * shape.PageLayerBytes();
      layer.bf16_pool += i % layers * shape.Bf16LayerBytes();
      Require(cuda::RunPagedAttention(layer, workspace, {stream}), "attention");
    }
    Require(cudaStreamEndCapture(stream, &graph), "capture");
    Require(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    cudaEvent_t begin, end;
    Require(cudaEventCreate(&begin), "event");
    Require(cudaEventCreate(&end), "event");
    std::vector<float> times;
    // Clocks settle first: replays worth 0.2 s (0.05 s) before those that count.
    float warm_ms = quick ? 50 : 200;
    while (times.size() < (quick ? 9 : 25)) {
      Require(cudaEventRecord(begin, stream), "event");
      Require(cudaGraphLaunch(exec, stream), "graph");
      Require(cudaEventRecord(end, stream), "event");
      Require(cudaStreamSynchronize(stream), "graph");
      float ms = 0;
      Require(cudaEventElapsedTime(&ms, begin, end), "event");
      if (warm_ms > 0) {
        warm_ms -= ms;
      } else {
        times.push_back(1000 * ms);
      }
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    std::sort(times.begin(), times.end());
    return static_cast<double>(times[times.size() / 2]) / (plans + attends);
  };
  Result r;
  r.plan_us = time(36, 0);
  Require(cuda::PlanPagedAttention(args, workspace, {stream}), "plan");
  r.us = time(0, layers * std::max(1, 36 / layers));
  r.bytes = bytes;
  r.layers = layers;

  // The error of the first layer, for some rows.
  Require(cuda::PlanPagedAttention(args, workspace, {stream}), "plan");
  Require(cuda::RunPagedAttention(args, workspace, {stream}), "attention");
  Require(cudaStreamSynchronize(stream), "attention");
  std::vector<int2> rows;
  for (int i = 0; i < std::min(seqs * heads, 8); ++i) {
    const int row =
        static_cast<int>(int64_t{i} * seqs * heads / std::min(seqs * heads, 8)) + (i % c.group);
    rows.push_back({row / heads, row % heads});
  }
  int2* device_rows = Upload(rows);
  double* device_out = Allocate<double>(rows.size() * c.head_dim);
  Reference<<<static_cast<int>(rows.size()), 1024, 0, stream>>>(args, device_rows, device_out);
  Require(cudaStreamSynchronize(stream), "float64 reference");
  std::vector<double> expected(rows.size() * c.head_dim);
  std::vector<float> out(q.size());
  Require(cudaMemcpy(expected.data(), device_out, 8 * expected.size(), cudaMemcpyDeviceToHost),
          "copy");
  Require(cudaMemcpy(out.data(), args.out, 4 * out.size(), cudaMemcpyDeviceToHost), "copy");
  r.error = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    double difference = 0, norm = 0;
    for (int k = 0; k < c.head_dim; ++k) {
      const double e = expected[i * c.head_dim + k];
      const double o = out[(size_t{1} * rows[i].x * heads + rows[i].y) * c.head_dim + k];
      difference += (o - e) * (o - e);
      norm += e * e;
    }
    const double error = std::sqrt(difference / norm);
    r.error = std::isfinite(error) ? std::max(r.error, error) : INFINITY;
  }
  for (const void* p :
       {static_cast<const void*>(page_pool), static_cast<const void*>(bf16_pool),
        static_cast<const void*>(args.q), static_cast<const void*>(args.out),
        static_cast<const void*>(args.page_ids), static_cast<const void*>(args.page_begin),
        static_cast<const void*>(args.bf16_ids), static_cast<const void*>(args.bf16_begin),
        static_cast<const void*>(args.last_tokens), static_cast<const void*>(workspace),
        static_cast<const void*>(device_rows), static_cast<const void*>(device_out)})
    Require(cudaFree(const_cast<void*>(p)), "cudaFree");
  cudaStreamDestroy(stream);
  return r;
}

std::vector<Case> Cases(bool quick) {
  constexpr int k = 1024;
  std::vector<Case> cases;
  const auto add = [&](const char* name, int d, int h, int g, int batch, int context) {
    for (bool two_bit : {true, false})
      cases.push_back({name, d, h, g, std::vector<int>(batch, context), two_bit});
  };
  add("b1 8K", 128, 8, 4, 1, 8 * k);
  add("b1 32K", 128, 8, 4, 1, 32 * k);
  add("b1 128K", 128, 8, 4, 1, 128 * k);
  add("b8 32K", 128, 8, 4, 8, 32 * k);
  add("b32 32K", 128, 8, 4, 32, 32 * k);
  add("b32 32K G8", 128, 8, 8, 32, 32 * k);
  if (quick) return cases;
  add("b8 8K", 128, 8, 4, 8, 8 * k);
  add("b8 128K", 128, 8, 4, 8, 128 * k);
  add("b32 8K", 128, 8, 4, 32, 8 * k);
  add("b32 128K", 128, 8, 4, 32, 128 * k);
  add("b32 32K G1", 128, 8, 1, 32, 32 * k);
  add("b32 32K G16", 128, 8, 16, 32, 32 * k);
  add("b32 32K d64", 64, 8, 4, 32, 32 * k);
  add("b128 8K", 128, 8, 4, 128, 8 * k);
  std::vector<int> ragged;
  for (int i = 0; i < 32; ++i) ragged.push_back(64 * (1 + (i * 7919) % 1024));
  for (bool two_bit : {true, false}) cases.push_back({"b32 ragged", 128, 8, 4, ragged, two_bit});
  return cases;
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  using namespace oscarkv::kernels;
  bool quick = false;
  double gbps = 4640;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--quick") {
      quick = true;
    } else if (arg.rfind("--gbps=", 0) == 0) {
      gbps = std::atof(arg.c_str() + 7);
    } else if (arg.rfind("--only=", 0) == 0) {
      only = arg.substr(7);
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  if (cuda::DeviceCount() == 0) {
    std::fprintf(stderr, "no GPU: %s\n", cuda::LastError());
    return 1;
  }
  std::printf("| case | kv | us | MB | GB/s | floor us | of floor | plan us | error | layers |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Case& c : Cases(quick)) {
    if (c.name.find(only) == std::string::npos) continue;
    const Result r = Measure(c, quick);
    const double floor = r.bytes / gbps * 1e-3;
    std::printf("| %s | %s | %.1f | %.1f | %.0f | %.1f | %.0f%% | %.1f | %.1e | %d |\n",
                c.name.c_str(), c.two_bit ? "2-bit" : "bf16", r.us, r.bytes * 1e-6,
                r.bytes / r.us * 1e-3, floor, 100 * floor / r.us, r.plan_us, r.error, r.layers);
    std::fflush(stdout);
  }
  return 0;
}
