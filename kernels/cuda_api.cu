#include "kernels/cuda_api.h"

namespace {

oscarkv::kernels::cuda::Api MakeApi() {
  namespace cuda = oscarkv::kernels::cuda;
  cuda::Api api;
#define OSCARKV_CUDA_FUNCTION(name) api.name = &cuda::name
  OSCARKV_CUDA_FUNCTION(DeviceCount);
  OSCARKV_CUDA_FUNCTION(LastError);
  OSCARKV_CUDA_FUNCTION(SetEarlyLaunches);
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
  OSCARKV_CUDA_FUNCTION(CreateMatmul);
  OSCARKV_CUDA_FUNCTION(DestroyMatmul);
  OSCARKV_CUDA_FUNCTION(Matmul);
  OSCARKV_CUDA_FUNCTION(AddRmsNorm);
  OSCARKV_CUDA_FUNCTION(SiluGate);
  OSCARKV_CUDA_FUNCTION(Embed);
  OSCARKV_CUDA_FUNCTION(ArgMax);
  OSCARKV_CUDA_FUNCTION(FillUniform);
  OSCARKV_CUDA_FUNCTION(FillPages);
  OSCARKV_CUDA_FUNCTION(PrepareAttentionInputs);
  OSCARKV_CUDA_FUNCTION(PrepareTransforms);
  OSCARKV_CUDA_FUNCTION(EncodeBlocks);
  OSCARKV_CUDA_FUNCTION(FillShapedTable);
  OSCARKV_CUDA_FUNCTION(EncodeShapedBlocks);
  OSCARKV_CUDA_FUNCTION(PagedPrefillAttention);
  OSCARKV_CUDA_FUNCTION(DecodePages);
  OSCARKV_CUDA_FUNCTION(PagedAttentionWorkspaceBytes);
  OSCARKV_CUDA_FUNCTION(PlanPagedAttention);
  OSCARKV_CUDA_FUNCTION(RunPagedAttention);
#undef OSCARKV_CUDA_FUNCTION
  return api;
}

}  // namespace

const oscarkv::kernels::cuda::Api* oscarkv_cuda_api() {
  static const oscarkv::kernels::cuda::Api api = MakeApi();
  return &api;
}
