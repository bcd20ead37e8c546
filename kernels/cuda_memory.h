// What a host program needs of a GPU beside kernels - memory, copies, streams, events, graphs -
// without CUDA's headers: callers that open the library at run time see only this.
//
// All return kOk or kDevice (LastError says why). Handles are CUDA's own. Functions act on the
// calling thread's current device (UseDevice).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/types.h"

namespace oscarkv::kernels::cuda {

struct DeviceInfo {
  char name[256] = "";
  char pci_id[32] = "";  // "0000:3b:00.0"
  int multiprocessors = 0;
  uint64_t total_bytes = 0, free_bytes = 0;
};

// Makes device `ordinal` this thread's current one. kUnsupported: it exists, but this build has no
// machine code for it.
KernelStatus UseDevice(int ordinal);
// Of the current device.
KernelStatus DescribeDevice(DeviceInfo* info);

KernelStatus Allocate(size_t bytes, void** memory);
void Free(void* memory);  // null allowed
// Page-locked host memory.
KernelStatus AllocatePinned(size_t bytes, void** memory);
void FreePinned(void* memory);
// Page-locks memory of the caller's, so that copies go straight to and from it.
KernelStatus Pin(void* memory, size_t bytes);
void Unpin(void* memory);

// Copies between any two of host and device. Asynchronous where host memory is page-locked.
KernelStatus Copy(void* to, const void* from, size_t bytes, Stream stream);
// `rows` runs of `bytes`, to_pitch and from_pitch bytes apart.
KernelStatus CopyRows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes,
                      size_t rows, Stream stream);
KernelStatus Zero(void* memory, size_t bytes, Stream stream);

KernelStatus CreateStream(Stream* stream);
void DestroyStream(Stream stream);
KernelStatus Synchronize(Stream stream);

struct Event {
  void* handle = nullptr;
};
KernelStatus CreateEvent(bool timing, Event* event);
void DestroyEvent(Event event);
KernelStatus Record(Event event, Stream stream);
KernelStatus Wait(Stream stream, Event event);
KernelStatus SynchronizeEvent(Event event);
KernelStatus ElapsedMs(Event from, Event to, float* ms);

struct Graph {
  void* handle = nullptr;
};
// What this thread launches on `stream` from here to EndCapture becomes the graph instead of
// running. After a failed launch EndCapture still has to be called.
KernelStatus BeginCapture(Stream stream);
KernelStatus EndCapture(Stream stream, Graph* graph);
KernelStatus Launch(Graph graph, Stream stream);
void DestroyGraph(Graph graph);

}  // namespace oscarkv::kernels::cuda
