#include "kernels/cuda_memory.h"

#include <cuda_runtime.h>

#include <cstdio>

#include "kernels/cuda_device.h"

namespace oscarkv::kernels::cuda {
namespace {

cudaStream_t ToCuda(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}
cudaEvent_t ToCuda(Event event) {
  return static_cast<cudaEvent_t>(event.handle);
}

}  // namespace

KernelStatus UseDevice(int ordinal) {
  int major = 0;
  KernelStatus status =
      Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal),
            "cudaDeviceGetAttribute");
  if (status != KernelStatus::kOk) return status;
  if (major != 8 && major != 9) return KernelStatus::kUnsupported;
  return Check(cudaSetDevice(ordinal), "cudaSetDevice");
}

KernelStatus DescribeDevice(DeviceInfo* info) {
  int device = 0;
  cudaDeviceProp properties;
  size_t free_bytes = 0, total_bytes = 0;
  KernelStatus status = Check(cudaGetDevice(&device), "cudaGetDevice");
  if (status == KernelStatus::kOk)
    status = Check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  if (status == KernelStatus::kOk)
    status = Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  if (status != KernelStatus::kOk) return status;
  if (cudaDeviceGetPCIBusId(info->pci_id, sizeof info->pci_id, device) != cudaSuccess) {
    info->pci_id[0] = '\0';
    cudaGetLastError();
  }
  std::snprintf(info->name, sizeof info->name, "%s", properties.name);
  info->multiprocessors = properties.multiProcessorCount;
  info->total_bytes = total_bytes;
  info->free_bytes = free_bytes;
  return status;
}

KernelStatus Allocate(size_t bytes, void** memory) {
  return Check(cudaMalloc(memory, bytes), "cudaMalloc");
}

void Free(void* memory) {
  cudaFree(memory);
}

KernelStatus AllocatePinned(size_t bytes, void** memory) {
  return Check(cudaMallocHost(memory, bytes), "cudaMallocHost");
}

void FreePinned(void* memory) {
  cudaFreeHost(memory);
}

KernelStatus Pin(void* memory, size_t bytes) {
  return Check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable), "cudaHostRegister");
}

void Unpin(void* memory) {
  cudaHostUnregister(memory);
}

KernelStatus Copy(void* to, const void* from, size_t bytes, Stream stream) {
  return Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, ToCuda(stream)),
               "cudaMemcpyAsync");
}

KernelStatus CopyRows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes,
                      size_t rows, Stream stream) {
  return Check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows, cudaMemcpyDefault,
                                 ToCuda(stream)),
               "cudaMemcpy2DAsync");
}

KernelStatus Zero(void* memory, size_t bytes, Stream stream) {
  return Check(cudaMemsetAsync(memory, 0, bytes, ToCuda(stream)), "cudaMemsetAsync");
}

KernelStatus CreateStream(Stream* stream) {
  return Check(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(&stream->handle),
                                         cudaStreamNonBlocking),
               "cudaStreamCreate");
}

void DestroyStream(Stream stream) {
  cudaStreamDestroy(ToCuda(stream));
}

KernelStatus Synchronize(Stream stream) {
  return Check(cudaStreamSynchronize(ToCuda(stream)), "cudaStreamSynchronize");
}

KernelStatus CreateEvent(bool timing, Event* event) {
  return Check(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(&event->handle),
                                        timing ? cudaEventDefault : cudaEventDisableTiming),
               "cudaEventCreate");
}

void DestroyEvent(Event event) {
  cudaEventDestroy(ToCuda(event));
}

KernelStatus Record(Event event, Stream stream) {
  return Check(cudaEventRecord(ToCuda(event), ToCuda(stream)), "cudaEventRecord");
}

KernelStatus Wait(Stream stream, Event event) {
  return Check(cudaStreamWaitEvent(ToCuda(stream), ToCuda(event), 0), "cudaStreamWaitEvent");
}

KernelStatus SynchronizeEvent(Event event) {
  return Check(cudaEventSynchronize(ToCuda(event)), "cudaEventSynchronize");
}

KernelStatus ElapsedMs(Event from, Event to, float* ms) {
  return Check(cudaEventElapsedTime(ms, ToCuda(from), ToCuda(to)), "cudaEventElapsedTime");
}

KernelStatus BeginCapture(Stream stream) {
  return Check(cudaStreamBeginCapture(ToCuda(stream), cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
}

KernelStatus EndCapture(Stream stream, Graph* graph) {
  cudaGraph_t captured = nullptr;
  KernelStatus status =
      Check(cudaStreamEndCapture(ToCuda(stream), &captured), "cudaStreamEndCapture");
  if (status != KernelStatus::kOk) return status;
  cudaGraphExec_t exec = nullptr;
  status = Check(cudaGraphInstantiate(&exec, captured, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(captured);
  graph->handle = exec;
  return status;
}

KernelStatus Launch(Graph graph, Stream stream) {
  return Check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle), ToCuda(stream)),
               "cudaGraphLaunch");
}

void DestroyGraph(Graph graph) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph.handle));
}

}  // namespace oscarkv::kernels::cuda
