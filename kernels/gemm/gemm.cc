#include "kernels/gemm/gemm.h"

#include <algorithm>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/convert.h"
#include "kernels/gemm/matmul.h"

namespace oscarkv::kernels {
namespace {

// Rows per primitive: beyond this the rate no longer grows, while the converted copy of x stays in
// the L2 cache and few different shapes are made.
constexpr int64_t kMaxRows = 512;

// Rounds to bf16 and stays fp32: for CPUs on which the library has no bf16 products.
void RoundToBf16(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = ToFloat(ToBf16(x[i]));
}

}  // namespace

struct PackedWeight::Impl {
  int64_t n, k;
  bool round;       // operands are rounded to bf16
  Compute compute;  // how the library multiplies
  AlignedBuffer packed;
  const void* data = nullptr;
};

PackedWeight::PackedWeight(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PackedWeight::~PackedWeight() = default;

std::unique_ptr<PackedWeight> PackedWeight::Create(const float* weight, int64_t n, int64_t k,
                                                   Compute compute) {
  auto impl = std::make_unique<Impl>();
  impl->n = n;
  impl->k = k;
  impl->round = compute == Compute::kBf16;
  impl->compute = impl->round && LibraryHasBf16() ? Compute::kBf16 : Compute::kFp32;
  const ScopedOmpThreads threads(GemmThreads());
  // Rounded here and not by the reorder: the same rounding as everywhere, and the library's fast
  // bf16 reorders apply.
  AlignedBuffer rounded;
  const void* source = weight;
  if (impl->compute == Compute::kBf16) {
    Bf16* copy = rounded.Reserve<Bf16>(n * k);
    ConvertToBf16(weight, n * k, copy);
    source = copy;
  } else if (impl->round) {
    float* copy = rounded.Reserve<float>(n * k);
    RoundToBf16(weight, n * k, copy);
    source = copy;
  }
  const auto packer = Packer::Get({n, k, impl->compute, true, impl->compute == Compute::kBf16});
  void* packed = impl->packed.Reserve(packer->bytes());
  packer->Run(source, packed);
  impl->data = packed;
  return std::unique_ptr<PackedWeight>(new PackedWeight(std::move(impl)));
}

void PackedWeight::Run(const float* x, int64_t m, const float* bias, float* y) const {
  thread_local AlignedBuffer converted;
  const Impl& w = *impl_;
  const ScopedOmpThreads threads(GemmThreads());
  for (int64_t row = 0; row < m; row += kMaxRows) {
    const int64_t rows = std::min(kMaxRows, m - row);
    const void* a = x + row * w.k;
    if (w.compute == Compute::kBf16) {
      Bf16* copy = converted.Reserve<Bf16>(rows * w.k);
      ConvertToBf16(x + row * w.k, rows * w.k, copy);
      a = copy;
    } else if (w.round) {
      float* copy = converted.Reserve<float>(rows * w.k);
      RoundToBf16(x + row * w.k, rows * w.k, copy);
      a = copy;
    }
    Matmul::Get({rows, w.n, w.k, w.compute, false, bias != nullptr})
        ->Run(a, w.data, bias, y + row * w.n);
  }
}

int64_t PackedWeight::n() const {
  return impl_->n;
}
int64_t PackedWeight::k() const {
  return impl_->k;
}

}  // namespace oscarkv::kernels
