// Which instruction sets the SIMD kernels were compiled for, and which this machine runs. Off the
// request path.
#pragma once

#include <string>

namespace oscarkv::kernels {

// "AVX3_DL (of AVX3_DL, AVX3, AVX2, SSE4)": the one that is used here, and those in the binary.
std::string CpuTargets();

}  // namespace oscarkv::kernels
