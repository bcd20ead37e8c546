// The encoder on a GPU: time by CUDA-graph replay (median), with the bytes that must move and the
// floor they give at the read bandwidth measured on the H200. --check runs the unit test's checks
// first (for machines without GoogleTest); --check-only stops there. --shape=N measures that row
// only (for a profiler).
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "bench/kernels/cuda_timing.h"
#include "kernels/cuda_device.h"
#include "kernels/q2_encode/op_cuda.h"
#include "kernels/q2_encode/shaped_cuda.h"
#include "tests/unit/kernels/cuda_checks.h"
#include "tests/unit/kernels/device_buffer.h"

namespace oscarkv::kernels {
namespace {

constexpr double kReadBandwidth = 4.64e12;  // bytes/s: streaming reads of 8 GiB on one H200
constexpr int kBuffers = 3;                 // sets of inputs and outputs, each beyond the L2

// Approximately normal bf16 values, different everywhere.
__global__ void FillKernel(Bf16* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    float sum = 0;
    uint64_t state = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
    for (int k = 0; k < 4; ++k) {
      state ^= state >> 29;
      state *= 0xbf58476d1ce4e5b9ull;
      state ^= state >> 32;
      sum += static_cast<float>(state & 0xffffff) * (1.0f / (1 << 24)) - 0.5f;
    }
    x[i] = static_cast<Bf16>(__float_as_uint(1.7f * sum) >> 16);
  }
}

__global__ void ReadKernel(const uint4* x, int64_t n, uint32_t* out) {
  uint32_t sum = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 v = __ldcs(x + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678) *out = sum;
}

struct Shape {
  const char* name;
  int d, blocks, heads;
  Side side;
  bool transform, rotated;
  enum { kOscar, kShaped, kSymmetric } how = kOscar;
  int sweeps = 2;
};

void Measure(const Shape& s) {
  const int64_t rows = int64_t{64} * s.blocks * s.heads, n = rows * s.d;
  const int64_t page_bytes = static_cast<int64_t>(s.blocks) * s.heads * PageHeadBytes(s.d);
  std::vector<std::unique_ptr<DeviceBuffer<Bf16>>> in, rotated;
  std::vector<std::unique_ptr<DeviceBuffer<uint8_t>>> pages;
  for (int i = 0; i < kBuffers; ++i) {
    in.push_back(std::make_unique<DeviceBuffer<Bf16>>(n));
    FillKernel<<<1024, 256>>>(in.back()->get(), n, i + 1);
    rotated.push_back(std::make_unique<DeviceBuffer<Bf16>>(s.rotated ? n : 1));
    pages.push_back(std::make_unique<DeviceBuffer<uint8_t>>(page_bytes));
  }
  std::vector<float> matrix(s.d * s.d);  // Sylvester-Hadamard / sqrt(d)
  for (int i = 0; i < s.d * s.d; ++i) {
    matrix[i] = (__builtin_popcount(i / s.d & i % s.d) % 2 ? -1.0f : 1.0f) /
                std::sqrt(static_cast<float>(s.d));
  }
  DeviceBuffer<float> matrices(matrix);
  DeviceBuffer<uint8_t> prepared(cuda::PreparedTransformBytes(s.d));
  cuda::PrepareTransforms(s.d, cuda::RowType::kBf16, matrices.get(), 1, prepared.get(), {});
  // Blocks behind each other; every head's metric weighs all channels alike: the work is a fit's.
  const bool shaped = s.how != Shape::kOscar, symmetric = s.how == Shape::kSymmetric;
  std::vector<int64_t> row_begin, page_begin;
  for (int b = 0; b < s.blocks; ++b) {
    row_begin.push_back(int64_t{64} * b * s.d * s.heads);
    page_begin.push_back(int64_t{b} * s.heads * PageHeadBytes(s.d, !symmetric));
  }
  DeviceBuffer<int64_t> row_begin_at(row_begin), page_begin_at(page_begin);
  const int d = s.d;
  std::vector<float> table(cuda::ShapedTableFloats(d), 0), tables;
  std::fill_n(table.begin() + 2 * d * d, 2 * d, 1.0f);
  table[2 * d * d + 2 * d] = static_cast<float>(d);
  table[2 * d * d + 2 * d + 1] = table[2 * d * d + 2 * d + 2] = 1;
  for (int h = 0; shaped && h < s.heads; ++h)
    tables.insert(tables.end(), table.begin(), table.end());
  DeviceBuffer<float> tables_at(tables);
  CheckCuda(cudaDeviceSynchronize(), "setup");
  const double us = bench::MedianUs(kBuffers, [&](int i, cudaStream_t stream) {
    if (shaped) {
      cuda::ShapedBatchArgs args;
      args.head_dim = s.d;
      args.side = s.side;
      args.num_kv_heads = s.heads;
      args.num_blocks = s.blocks;
      args.rows = in[i]->get();
      args.head_stride = s.d;
      args.row_stride = int64_t{s.d} * s.heads;
      args.row_begin = row_begin_at.get();
      args.tables = tables_at.get();
      args.sweeps = s.sweeps;
      args.symmetric = symmetric;
      args.pages = pages[i]->get();
      args.page_begin = page_begin_at.get();
      if (cuda::EncodeShapedBlocks(args, {stream}) != KernelStatus::kOk) {
        std::fprintf(stderr, "%s: %s\n", s.name, cuda::LastError());
        std::abort();
      }
      return;
    }
    cuda::EncodeBatchArgs args;
    args.head_dim = s.d;
    args.side = s.side;
    args.num_kv_heads = s.heads;
    args.num_blocks = s.blocks;
    args.num_tokens = int64_t{64} * s.blocks;
    args.rows = in[i]->get();
    args.head_stride = s.d;
    args.row_stride = int64_t{s.d} * s.heads;
    args.clip_ratio = s.side == Side::kKey ? 0.96f : 0.92f;
    if (s.transform) args.transform = prepared.get();
    if (s.rotated) args.rotated = rotated[i]->get();
    args.pages = pages[i]->get();
    args.page_stride = s.heads * static_cast<int64_t>(PageHeadBytes(s.d));
    if (cuda::EncodeBlocks(args, {stream}) != KernelStatus::kOk) {
      std::fprintf(stderr, "%s: %s\n", s.name, cuda::LastError());
      std::abort();
    }
  });
  const double bytes = static_cast<double>(n) * 2 * (s.rotated ? 2 : 1) + page_bytes / 2.0;
  const double floor_us = 1e6 * bytes / kReadBandwidth;
  std::printf("| %s | %d | %lld | %.1f | %.1f | %.1f | %.0f %% | %.2f |\n", s.name, s.d,
              static_cast<long long>(rows), bytes / 1e6, us, floor_us, 100 * floor_us / us,
              1e-6 * bytes / us);
}

int Main(int argc, char** argv) {
  bool check = false, only = false;
  int row = -1;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--shape=", 8) == 0) row = std::atoi(argv[i] + 8);
    only |= std::strcmp(argv[i], "--check-only") == 0;
    check |= only || std::strcmp(argv[i], "--check") == 0;
  }
  if (cuda::DeviceCount() == 0) {
    std::fprintf(stderr, "no usable GPU: %s\n", cuda::LastError());
    return 1;
  }
  if (check && bench::RunChecks(Q2EncodeCudaChecks()) != 0) return 1;
  if (only) return 0;
  if (row < 0) {
    const int64_t bytes = int64_t{4} << 30;
    DeviceBuffer<uint8_t> big(bytes);
    DeviceBuffer<uint32_t> out(1);
    FillKernel<<<1024, 256>>>(reinterpret_cast<Bf16*>(big.get()), bytes / 2, 9);
    const double us = bench::MedianUs(
        kBuffers,
        [&](int, cudaStream_t stream) {
          ReadKernel<<<1056, 512, 0, stream>>>(reinterpret_cast<const uint4*>(big.get()),
                                               bytes / 16, out.get());
        },
        10);
    std::printf("reading 4 GiB: %.2f TB/s\n\n", 1e-6 * static_cast<double>(bytes) / us);
  }
  std::printf("| case | head_dim | rows | MB | us | floor us | of floor | TB/s |\n");
  std::printf("|---|---|---|---|---|---|---|---|\n");
  constexpr Shape kShapes[] = {
      {"K, prefill 128K x 8, rotated here", 128, 2048, 8, Side::kKey, true, false},
      {"K, the same, rows stored too", 128, 2048, 8, Side::kKey, true, true},
      {"V, prefill 128K x 8, already rotated", 128, 2048, 8, Side::kValue, false, false},
      {"V, the same, rotated here", 128, 2048, 8, Side::kValue, true, false},
      {"K, prefill 128K x 8, already rotated", 128, 2048, 8, Side::kKey, false, false},
      {"K, prefill 8K x 8, rotated here", 128, 128, 8, Side::kKey, true, false},
      {"K, flush of 256 sequences x 8", 128, 256, 8, Side::kKey, false, false},
      {"K, flush of 32 sequences x 8", 128, 32, 8, Side::kKey, false, false},
      {"K, flush of 1 sequence x 8", 128, 1, 8, Side::kKey, false, false},
      {"V, flush of 1 sequence x 8", 128, 1, 8, Side::kValue, false, false},
      {"K, prefill 128K x 8, rotated here", 64, 2048, 8, Side::kKey, true, false},
      {"V, prefill 128K x 8, already rotated", 64, 2048, 8, Side::kValue, false, false},
      {"K, shaped, prefill 128K x 8", 128, 2048, 8, Side::kKey, false, false, Shape::kShaped},
      {"V, shaped, prefill 128K x 8", 128, 2048, 8, Side::kValue, false, false, Shape::kShaped},
      {"K, shaped, no sweeps", 128, 2048, 8, Side::kKey, false, false, Shape::kShaped, 0},
      {"K, shaped-sym", 128, 2048, 8, Side::kKey, false, false, Shape::kSymmetric},
      {"K, shaped, prefill 4K x 8", 128, 64, 8, Side::kKey, false, false, Shape::kShaped},
      {"K, shaped, flush of 1 sequence x 8", 128, 1, 8, Side::kKey, false, false, Shape::kShaped},
  };
  for (int i = 0; i < static_cast<int>(std::size(kShapes)); ++i) {
    if (row < 0 || row == i) Measure(kShapes[i]);
  }
  return 0;
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  return oscarkv::kernels::Main(argc, argv);
}
