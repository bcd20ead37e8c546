// The CUDA library, opened at run time: one binary serves with and without a GPU.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda_api.h"

namespace oscarkv {

// Opens liboscarkv_kernels_cuda.so once per process, looked for beside the executable, in ../lib
// and ../kernels from there (installed, resp. built), then by the loader's rules. kUnavailable: it
// or what it needs is missing, or it belongs to another build. It stays open.
absl::StatusOr<const kernels::cuda::Api*> OpenCudaLibrary();

}  // namespace oscarkv
