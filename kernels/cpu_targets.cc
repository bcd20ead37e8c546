#include "kernels/cpu_targets.h"

#include <cstdint>

#include "kernels/simd_targets.h"
// Behind the targets.
#include <hwy/highway.h>

namespace oscarkv::kernels {

std::string CpuTargets() {
  // A bit per instruction set, the best ones lowest.
  const int64_t compiled = HWY_TARGETS;
  const int64_t usable = compiled & hwy::SupportedTargets();
  std::string all;
  for (int64_t bits = compiled; bits != 0; bits &= bits - 1) {
    if (!all.empty()) all += ", ";
    all += hwy::TargetName(bits & -bits);
  }
  return std::string(hwy::TargetName(usable & -usable)) + " (of " + all + ")";
}

}  // namespace oscarkv::kernels
