// Causal attention of a prompt in the shapes of the reference model (8 query heads, 2 kv heads,
// head_dim 128), one layer, in chunks as the model runner feeds them. The floor is the arithmetic:
// 4 d operations per (query head, query, key it attends) at the rate that the same matrix library
// reaches, in this run, on one packed product of the tile's shape.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "bench/kernels/timing.h"
#include "kernels/gemm/matmul.h"
#include "kernels/prefill_attention/op.h"
#include "kernels/thread_pool.h"

namespace oscarkv::kernels {
namespace {

constexpr int kHeadDim = 128, kKvHeads = 2, kGroup = 4, kLayers = 8;

struct Inputs {
  std::vector<float> q, out;
  std::vector<Bf16> k, v, k_history, v_history;
};

double Attention(const Inputs& in, int tokens, int chunk, bool canonical, Executor* executor,
                 std::vector<float>* out) {
  return bench::TimePerCall(
      [&] {
        for (int start = 0; start < tokens; start += chunk) {
          PrefillAttentionArgs args;
          args.head_dim = kHeadDim;
          args.num_kv_heads = kKvHeads;
          args.group = kGroup;
          args.scale = 0.088388f;
          args.start = start;
          args.num_queries = std::min(chunk, tokens - start);
          args.q = in.q.data() + int64_t{start} * kKvHeads * kGroup * kHeadDim;
          args.out = out->data() + int64_t{start} * kKvHeads * kGroup * kHeadDim;
          args.k_exact = in.k.data();
          args.v_exact = in.v.data();
          if (canonical) {
            args.k_history = in.k_history.data();
            args.v_history = in.v_history.data();
          }
          args.head_stride = int64_t{tokens} * kHeadDim;
          PrefillAttention(Backend::kCpu, args, executor);
        }
      },
      3, 0.2);
}

// GFLOP/s of Q K^T of one tile against 512 keys, and of P V.
double ProductRate() {
  const ScopedOmpThreads one(1);
  constexpr int kM = 64 * kGroup, kKeys = 512;
  const Compute compute = LibraryHasBf16() ? Compute::kBf16 : Compute::kFp32;
  std::vector<float> a(kM * kKeys), b(kKeys * kHeadDim), c(kM * kKeys);
  const auto qk = Matmul::Get({kM, kKeys, kHeadDim, compute, false, false});
  const auto pv = Matmul::Get({kM, kHeadDim, kKeys, compute, true, false});
  const double s = bench::TimePerCall([&] { qk->Run(a.data(), b.data(), nullptr, c.data()); });
  const double t = bench::TimePerCall([&] { pv->Run(a.data(), b.data(), nullptr, c.data()); });
  return 4.0 * kM * kKeys * kHeadDim / (s + t) / 1e9;
}

void Report(int tokens, int chunk, bool canonical, int threads, double rate) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  Inputs in;
  in.q.resize(int64_t{tokens} * kKvHeads * kGroup * kHeadDim);
  for (float& v : in.q) v = normal(rng);
  for (auto* rows : {&in.k, &in.v, &in.k_history, &in.v_history}) {
    rows->resize(int64_t{tokens} * kKvHeads * kHeadDim);
    for (Bf16& v : *rows) v = ToBf16(normal(rng));
  }
  std::vector<float> out(in.q.size());
  ThreadPool pool(threads);
  const double seconds = Attention(in, tokens, chunk, canonical, &pool, &out);
  const double flops = 4.0 * kHeadDim * kKvHeads * kGroup * (0.5 * tokens * (tokens + 1.0));
  std::printf(
      "  %6d tokens, chunks of %5d, %-9s %d thread(s): %8.1f CPU ms a layer, "
      "%6.2f s for %d layers, %5.1f GFLOP/s, %.2fx the floor\n",
      tokens, chunk, canonical ? "canonical" : "exact", threads, seconds * 1e3, seconds * kLayers,
      kLayers, flops / seconds / 1e9, seconds * rate * 1e9 / flops);
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double rate = oscarkv::kernels::ProductRate();
  std::printf(
      "bf16 rows, %d query heads, %d kv heads, head_dim %d; the library's products on one core: "
      "%.0f GFLOP/s\n",
      oscarkv::kernels::kKvHeads * oscarkv::kernels::kGroup, oscarkv::kernels::kKvHeads,
      oscarkv::kernels::kHeadDim, rate);
  for (const int tokens : {1024, 4096, 8192}) {
    for (const bool canonical : {false, true}) {
      oscarkv::kernels::Report(tokens, 512, canonical, threads, rate);
      oscarkv::kernels::Report(tokens, tokens, canonical, threads, rate);
    }
  }
}
