// Launches of kernels that may start while the one before them in the stream still runs (from sm_90
// on; an ordinary launch before). Such a kernel
//   - calls WaitForPriorKernels before it touches memory that any kernel of the stream writes, in
//     every thread that does, and in some thread of every grid: what follows in the stream waits
//     for this kernel's end only, and must find there that all before it have ended, too;
//   - best calls LetNextKernelStart when it begins. What comes next then waits on multiprocessors
//     that this kernel leaves; it cannot keep blocks of this one from starting.
// Before the wait it may read what nothing in the stream writes: weights, tables.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda_device.h"

namespace oscarkv::kernels::cuda {

// Of all devices: a program that drives devices of both kinds takes ordinary launches only.
inline bool HasProgrammaticLaunch() {
  static const bool has = [] {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) return false;
    for (int i = 0; i < devices; ++i) {
      int major = 0;
      if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) != cudaSuccess ||
          major < 9)
        return false;
    }
    return devices > 0;
  }();
  return has;
}

template <class... Parameters, class... Arguments>
KernelStatus LaunchEarly(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                         size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = EarlyLaunches() && HasProgrammaticLaunch() ? 1 : 0;
  return Check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace oscarkv::kernels::cuda
