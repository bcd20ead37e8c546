// The CUDA backend's errors and what it must know of the machine. Works without a GPU: DeviceCount
// is 0 then.
#pragma once

#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

// GPUs that this build has machine code for; 0 without a driver (LastError says why).
int DeviceCount();

// What failed last on this thread: "expression: CUDA's text", or "".
const char* LastError();

// What LastError says from here on: "what: why".
void SetLastError(const char* what, const char* why);

// Whether kernels may start while the one before them still runs (cuda_launch.cuh): yes, unless
// told otherwise here, for comparisons. Of the process; launches and captures from here on.
void SetEarlyLaunches(bool allowed);
bool EarlyLaunches();

// kOk for 0 (cudaSuccess); else notes `what` and the error's text for LastError and gives kDevice.
KernelStatus Check(int cuda_error, const char* what);

}  // namespace oscarkv::kernels::cuda
