// Device memory for tests and benchmarks of CUDA kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace oscarkv::kernels {

// Ends the program on an error of CUDA: a test or benchmark cannot go on.
inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t n) : size_(n) {
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T) + 1), "cudaMalloc");
  }
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size()) {
    Upload(values);
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* get() const { return data_; }
  size_t size() const { return size_; }
  void Upload(const std::vector<T>& values) {
    CheckCuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              "upload");
  }
  // Waits for the device first.
  std::vector<T> Download() const {
    std::vector<T> values(size_);
    CheckCuda(cudaDeviceSynchronize(), "kernel");
    CheckCuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              "download");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace oscarkv::kernels
