// The CUDA library's functions as one table, for programs that open the library at run time: they
// need no CUDA to be built and serve without it. The functions are those of the headers named.
#pragma once

#include <cstddef>

#include "kernels/attention_inputs/op_cuda.h"
#include "kernels/cuda_device.h"
#include "kernels/cuda_memory.h"
#include "kernels/elementwise/op_cuda.h"
#include "kernels/gemm/op_cuda.h"
#include "kernels/paged_attention/op_cuda.h"
#include "kernels/prefill_attention/op_cuda.h"
#include "kernels/q2_encode/op_cuda.h"
#include "kernels/q2_encode/shaped_cuda.h"

namespace oscarkv::kernels::cuda {

// Changed with every change of this table or of a struct that its functions take: a library and a
// program of different builds must not meet.
inline constexpr int kApiVersion = 3;
inline constexpr char kApiSymbol[] = "oscarkv_cuda_api";
inline constexpr char kLibraryName[] = "liboscarkv_kernels_cuda.so";

struct Api {
  int version = kApiVersion;
  size_t bytes = sizeof(Api);
#define OSCARKV_CUDA_FUNCTION(name) decltype(&cuda::name) name = nullptr
  // cuda_device.h
  OSCARKV_CUDA_FUNCTION(DeviceCount);
  OSCARKV_CUDA_FUNCTION(LastError);
  OSCARKV_CUDA_FUNCTION(SetEarlyLaunches);
  // cuda_memory.h
  OSCARKV_CUDA_FUNCTION(UseDevice);
  OSCARKV_CUDA_FUNCTION(DescribeDevice);
  OSCARKV_CUDA_FUNCTION(Allocate);
  OSCARKV_CUDA_FUNCTION(Free);
  OSCARKV_CUDA_FUNCTION(AllocatePinned);
  OSCARKV_CUDA_FUNCTION(FreePinned);
  OSCARKV_CUDA_FUNCTION(Pin);
  OSCARKV_CUDA_FUNCTION(Unpin);
  OSCARKV_CUDA_FUNCTION(Copy);
  OSCARKV_CUDA_FUNCTION(CopyRows);
  OSCARKV_CUDA_FUNCTION(Zero);
  OSCARKV_CUDA_FUNCTION(CreateStream);
  OSCARKV_CUDA_FUNCTION(DestroyStream);
  OSCARKV_CUDA_FUNCTION(Synchronize);
  OSCARKV_CUDA_FUNCTION(CreateEvent);
  OSCARKV_CUDA_FUNCTION(DestroyEvent);
  OSCARKV_CUDA_FUNCTION(Record);
  OSCARKV_CUDA_FUNCTION(Wait);
  OSCARKV_CUDA_FUNCTION(SynchronizeEvent);
  OSCARKV_CUDA_FUNCTION(ElapsedMs);
  OSCARKV_CUDA_FUNCTION(BeginCapture);
  OSCARKV_CUDA_FUNCTION(EndCapture);
  OSCARKV_CUDA_FUNCTION(Launch);
  OSCARKV_CUDA_FUNCTION(DestroyGraph);
  // gemm
  OSCARKV_CUDA_FUNCTION(CreateMatmul);
  OSCARKV_CUDA_FUNCTION(DestroyMatmul);
  OSCARKV_CUDA_FUNCTION(Matmul);
  // elementwise
  OSCARKV_CUDA_FUNCTION(AddRmsNorm);
  OSCARKV_CUDA_FUNCTION(SiluGate);
  OSCARKV_CUDA_FUNCTION(Embed);
  OSCARKV_CUDA_FUNCTION(ArgMax);
  OSCARKV_CUDA_FUNCTION(FillUniform);
  OSCARKV_CUDA_FUNCTION(FillPages);
  // attention_inputs
  OSCARKV_CUDA_FUNCTION(PrepareAttentionInputs);
  // q2_encode
  OSCARKV_CUDA_FUNCTION(PrepareTransforms);
  OSCARKV_CUDA_FUNCTION(EncodeBlocks);
  OSCARKV_CUDA_FUNCTION(FillShapedTable);
  OSCARKV_CUDA_FUNCTION(EncodeShapedBlocks);
  // prefill_attention
  OSCARKV_CUDA_FUNCTION(PagedPrefillAttention);
  OSCARKV_CUDA_FUNCTION(DecodePages);
  // paged_attention
  OSCARKV_CUDA_FUNCTION(PagedAttentionWorkspaceBytes);
  OSCARKV_CUDA_FUNCTION(PlanPagedAttention);
  OSCARKV_CUDA_FUNCTION(RunPagedAttention);
#undef OSCARKV_CUDA_FUNCTION
};

}  // namespace oscarkv::kernels::cuda

// The symbol kApiSymbol of the library.
extern "C" const oscarkv::kernels::cuda::Api* oscarkv_cuda_api();
