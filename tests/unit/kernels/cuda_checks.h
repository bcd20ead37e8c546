// What CUDA kernels must do, as functions that return "" or what went wrong: unit tests run them,
// and so does a benchmark's --check on machines without GoogleTest. They need a GPU.
#pragma once

#include <string>
#include <vector>

namespace oscarkv::kernels {

struct CudaCheck {
  const char* name;
  std::string (*run)();
};
const std::vector<CudaCheck>& Q2EncodeCudaChecks();
const std::vector<CudaCheck>& DecodeStepCudaChecks();  // attention_inputs and elementwise
const std::vector<CudaCheck>& PrefillCudaChecks();     // prefill_attention and gemm

}  // namespace oscarkv::kernels
