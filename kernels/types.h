// Types that every kernel shares. This room uses nothing of ours: no abseil, no logging.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace oscarkv::kernels {

// bf16 as its bits.
using Bf16 = uint16_t;
inline float ToFloat(Bf16 v) {
  return std::bit_cast<float>(uint32_t{v} << 16);
}
// Round to nearest, ties to even; NaN stays NaN.
inline Bf16 ToBf16(float v) {
  const uint32_t b = std::bit_cast<uint32_t>(v);
  if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<Bf16>((b >> 16) | 0x40);
  return static_cast<Bf16>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

// fp16 as its bits; conversions are exact, resp. round to nearest even, and keep subnormals.
using Fp16 = uint16_t;
float Fp16ToFloat(Fp16 v);
Fp16 FloatToFp16(float v);  // beyond +-65504 (after rounding): +-65504, never Inf; NaN: NaN

// Which backend runs a kernel, and where: `handle` is a cudaStream_t for kCuda and unused for kCpu.
enum class Backend { kRef, kCpu, kCuda };
struct Stream {
  void* handle = nullptr;
};

// Runs f(0..n-1), perhaps concurrently, and returns when all are done. A kernel given a null
// Executor runs on the caller's thread.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int num_threads() const = 0;
  virtual void ParallelFor(int n, const std::function<void(int)>& f) = 0;
};

// Kernels have preconditions (stated in op.h; broken ones are bugs) and few errors of data, given
// by this.
enum class KernelStatus {
  kOk,
  kNonFinite,    // an input row holds Inf or NaN; nothing can be said of the outputs of that row
  kUnsupported,  // this backend has no such shape
  kDevice,       // kCuda only: the device or its driver failed; cuda::LastError() says how
};

}  // namespace oscarkv::kernels
