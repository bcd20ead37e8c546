// Timing and checking for the benchmarks of CUDA kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/unit/kernels/cuda_checks.h"
#include "tests/unit/kernels/device_buffer.h"

namespace oscarkv::bench {

// Median over `rounds` replays of a graph that calls f(0) .. f(calls - 1); microseconds per call.
inline double MedianUs(int calls, const std::function<void(int, cudaStream_t)>& f,
                       int rounds = 40) {
  cudaStream_t stream;
  kernels::CheckCuda(cudaStreamCreate(&stream), "stream");
  f(0, stream);  // outside of the capture: sets attributes, loads the module
  kernels::CheckCuda(cudaStreamSynchronize(stream), "first call");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  kernels::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) f(i, stream);
  kernels::CheckCuda(cudaStreamEndCapture(stream, &graph), "capture");
  kernels::CheckCuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t start, stop;
  kernels::CheckCuda(cudaEventCreate(&start), "event");
  kernels::CheckCuda(cudaEventCreate(&stop), "event");
  std::vector<float> ms(rounds);
  for (int i = -5; i < rounds; ++i) {
    kernels::CheckCuda(cudaEventRecord(start, stream), "record");
    kernels::CheckCuda(cudaGraphLaunch(exec, stream), "replay");
    kernels::CheckCuda(cudaEventRecord(stop, stream), "record");
    kernels::CheckCuda(cudaStreamSynchronize(stream), "replay");
    if (i >= 0) kernels::CheckCuda(cudaEventElapsedTime(&ms[i], start, stop), "elapsed");
  }
  std::nth_element(ms.begin(), ms.begin() + rounds / 2, ms.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  return 1e3 * ms[rounds / 2] / calls;
}

// The number of checks that failed; prints all.
inline int RunChecks(const std::vector<kernels::CudaCheck>& checks) {
  int failed = 0;
  for (const kernels::CudaCheck& check : checks) {
    const std::string error = check.run();
    std::printf("%s %s\n", error.empty() ? "ok  " : "FAIL", check.name);
    if (!error.empty()) std::printf("     %s\n", error.c_str());
    failed += !error.empty();
  }
  return failed;
}

}  // namespace oscarkv::bench
