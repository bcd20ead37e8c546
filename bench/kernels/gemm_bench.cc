// y = x W^T with packed weights, GFLOP/s of 2 m n k, for the shapes of the reference model. The
// floor of a decode step (m = 1) is reading the weight once; its rate is given in GB/s of packed
// weight.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "bench/kernels/timing.h"
#include "kernels/gemm/gemm.h"

namespace oscarkv::kernels {
namespace {

void Report(int64_t n, int64_t k) {
  std::vector<float> weight(n * k, 0.5f), x(512 * k, 1.0f), y(512 * n);
  const auto fp32 = PackedWeight::Create(weight.data(), n, k, Compute::kFp32);
  const auto bf16 = PackedWeight::Create(weight.data(), n, k, Compute::kBf16);
  std::printf("n %5d k %5d:", static_cast<int>(n), static_cast<int>(k));
  for (const int m : {1, 8, 64, 512}) {
    const double flops = 2.0 * m * n * k;
    const double f = bench::TimePerCall([&] { fp32->Run(x.data(), m, nullptr, y.data()); }, 3);
    const double b = bench::TimePerCall([&] { bf16->Run(x.data(), m, nullptr, y.data()); }, 3);
    std::printf("  m %3d: fp32 %4.0f bf16 %4.0f (%.2fx)", m, flops / f / 1e9, flops / b / 1e9,
                f / b);
    if (m == 1) std::printf(" [%.0f, %.0f GB/s]", 4.0 * n * k / f / 1e9, 2.0 * n * k / b / 1e9);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  oscarkv::kernels::SetGemmThreads(threads);
  std::printf("%d thread(s), native bf16: %d; GFLOP/s\n", threads,
              oscarkv::kernels::HasNativeBf16());
  for (const auto& [n, k] : {std::pair<int, int>{1024, 384}, {384, 1024}, {256, 384}, {8192, 384}})
    oscarkv::kernels::Report(n, k);
}
