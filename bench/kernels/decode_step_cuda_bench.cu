// The small kernels of a decode step on a GPU, a Qwen3-8B-like shape: time by CUDA-graph replay
// (median over calls in a row, caches warm: in a step their inputs have just been written). --check
// runs the unit test's checks first.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "bench/kernels/cuda_timing.h"
#include "kernels/attention_inputs/op_cuda.h"
#include "kernels/cuda_device.h"
#include "kernels/elementwise/op_cuda.h"
#include "kernels/q2_encode/op_cuda.h"

namespace oscarkv::kernels {
namespace {

constexpr int kHeadDim = 128, kKvHeads = 8, kGroup = 4, kCalls = 20;
constexpr int64_t kHidden = 4096, kWidth = 12288, kVocab = 151936;

void Require(KernelStatus status) {
  if (status == KernelStatus::kOk) return;
  std::fprintf(stderr, "kernel: %s\n", cuda::LastError());
  std::abort();
}

void Report(const char* name, int batch, const std::function<void(Stream)>& f) {
  const double us = bench::MedianUs(kCalls, [&](int, cudaStream_t s) { f({s}); });
  std::printf("| %s | %d | %.2f |\n", name, batch, us);
}

void Measure(int batch) {
  constexpr int kHeads = kKvHeads * (kGroup + 2), kPositions = 64;
  constexpr int64_t kSide = int64_t{kKvHeads} * kPageTokens * kHeadDim;
  const auto some = [](int64_t n) { return std::vector<float>(n, 0.37f); };
  DeviceBuffer<float> qkv(some(int64_t{batch} * kHeads * kHeadDim)), norm(some(kHidden)),
      table(some(kPositions * kHeadDim)), matrix(some(kHeadDim * kHeadDim)),
      q(int64_t{batch} * kKvHeads * kGroup * kHeadDim), x(some(batch * kHidden)),
      delta(some(batch * kHidden)), logits(some(batch * kVocab));
  DeviceBuffer<Bf16> kv(2 * kSide * batch), y(batch * kHidden), mlp(batch * kWidth);
  DeviceBuffer<float> gate_up(some(2 * batch * kWidth));
  DeviceBuffer<uint8_t> prepared(cuda::PreparedTransformBytes(kHeadDim));
  std::vector<int64_t> rows(batch);
  for (int i = 0; i < batch; ++i) rows[i] = 2 * kSide * i + i % 64 * kHeadDim;
  DeviceBuffer<int64_t> kv_row(rows);
  DeviceBuffer<int32_t> positions(std::vector<int32_t>(batch, 5)), token(batch);
  Require(
      cuda::PrepareTransforms(kHeadDim, cuda::RowType::kBf16, matrix.get(), 1, prepared.get(), {}));
  cuda::AttentionInputArgs args;
  args.head_dim = kHeadDim;
  args.num_kv_heads = kKvHeads;
  args.group = kGroup;
  args.num_tokens = batch;
  args.qkv = {qkv.get(), cuda::ElementType::kFloat32};
  args.row_stride = kHeads * kHeadDim;
  args.q_norm = args.k_norm = norm.get();
  args.eps = 1e-6f;
  args.positions = positions.get();
  args.cos_table = args.sin_table = table.get();
  args.half_dim = kHeadDim / 2;
  args.transform = prepared.get();
  args.q = q.get();
  args.kv = kv.get();
  args.kv_row = kv_row.get();
  args.value_offset = kSide;
  Report("norm, RoPE, rotation, append", batch,
         [&](Stream s) { Require(cuda::PrepareAttentionInputs(args, s)); });
  Report("residual + RMSNorm, 4096", batch, [&](Stream s) {
    Require(cuda::AddRmsNorm(x.get(), {delta.get()}, norm.get(), 1e-6f, batch, kHidden,
                             {y.get(), cuda::ElementType::kBf16}, nullptr, s));
  });
  Report("SiLU gate, 12288", batch, [&](Stream s) {
    Require(
        cuda::SiluGate({gate_up.get()}, batch, kWidth, {mlp.get(), cuda::ElementType::kBf16}, s));
  });
  Report("argmax, 151936", batch,
         [&](Stream s) { Require(cuda::ArgMax(logits.get(), batch, kVocab, token.get(), s)); });
}

int Main(int argc, char** argv) {
  if (cuda::DeviceCount() == 0) {
    std::fprintf(stderr, "no usable GPU: %s\n", cuda::LastError());
    return 1;
  }
  const bool only = argc > 1 && std::strcmp(argv[1], "--check-only") == 0;
  if ((only || (argc > 1 && std::strcmp(argv[1], "--check") == 0)) &&
      bench::RunChecks(DecodeStepCudaChecks()) != 0)
    return 1;
  if (only) return 0;
  std::printf("| kernel | batch | us |\n|---|---|---|\n");
  for (const int batch : {1, 32, 256}) Measure(batch);
  return 0;
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  return oscarkv::kernels::Main(argc, argv);
}
