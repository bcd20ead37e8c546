#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>

#include "kernels/cuda_device.h"

namespace oscarkv::kernels::cuda {
namespace {
thread_local char last_error[256] = "";
std::atomic<bool> early_launches{true};
}  // namespace

const char* LastError() {
  return last_error;
}

void SetLastError(const char* what, const char* why) {
  std::snprintf(last_error, sizeof last_error, "%s: %s", what, why);
}

void SetEarlyLaunches(bool allowed) {
  early_launches.store(allowed, std::memory_order_relaxed);
}

bool EarlyLaunches() {
  return early_launches.load(std::memory_order_relaxed);
}

KernelStatus Check(int cuda_error, const char* what) {
  if (cuda_error == cudaSuccess) return KernelStatus::kOk;
  SetLastError(what, cudaGetErrorString(static_cast<cudaError_t>(cuda_error)));
  cudaGetLastError();  // clears it: the next launch's check must not report it again
  return KernelStatus::kDevice;
}

int DeviceCount() {
  int n = 0, usable = 0;
  if (Check(cudaGetDeviceCount(&n), "cudaGetDeviceCount") != KernelStatus::kOk) return 0;
  for (int i = 0; i < n; ++i) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
    usable += major == 8 || major == 9;
  }
  return usable;
}

}  // namespace oscarkv::kernels::cuda
