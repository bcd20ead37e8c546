// One GPU as the runner uses it: its memory and its stream, with errors as Status.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "kernels/cuda_api.h"

namespace oscarkv {

// Used by one thread at a time; each thread that comes to it calls Enter first. Outlives what is
// allocated on it.
class Device {
 public:
  using Api = kernels::cuda::Api;

  // kUnavailable names what is missing: the library, the driver, the GPU, cuBLASLt.
  static absl::StatusOr<std::unique_ptr<Device>> Open(int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Api& api() const { return *api_; }
  kernels::Stream stream() const { return stream_; }    // all computing
  kernels::Stream to_host() const { return to_host_; }  // copies that overlap with it
  kernels::cuda::MatmulContext* matmul() const { return matmul_; }

  // Makes it the calling thread's current device.
  absl::Status Enter() const;
  // kInternal with the device's own words; kUnimplemented: a shape without a kernel.
  absl::Status Check(kernels::KernelStatus status, absl::string_view what) const;
  absl::Status Synchronize() const;
  absl::StatusOr<kernels::cuda::DeviceInfo> Describe() const;

 private:
  Device(const Api* api, int ordinal) : api_(api), ordinal_(ordinal) {}

  const Api* const api_;
  const int ordinal_;
  kernels::Stream stream_, to_host_;
  kernels::cuda::MatmulContext* matmul_ = nullptr;
};

// Device memory (or, kPinned, page-locked host memory) of n elements; not initialised.
template <class T>
class DeviceArray {
 public:
  enum class Kind { kDevice, kPinned };

  DeviceArray() = default;
  ~DeviceArray() { Reset(); }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    Reset();
    device_ = std::exchange(other.device_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    kind_ = other.kind_;
    return *this;
  }

  // kResourceExhausted: no such amount of memory.
  static absl::StatusOr<DeviceArray> Create(const Device& device, size_t n,
                                            Kind kind = Kind::kDevice);
  // The device waits for nothing: for memory that kernels under way do not use.
  absl::Status Upload(const T* values, size_t n) const {
    return device_->Check(device_->api().Copy(data_, values, n * sizeof(T), device_->stream()),
                          "upload");
  }
  absl::Status Zero() const {
    return device_->Check(device_->api().Zero(data_, size_ * sizeof(T), device_->stream()), "zero");
  }
  // Makes room for n elements; what it held is lost when it grows.
  absl::Status Reserve(const Device& device, size_t n) {
    if (n <= size_) return absl::OkStatus();
    RETURN_IF_ERROR(device.Synchronize());  // kernels under way may use it
    Reset();
    ASSIGN_OR_RETURN(*this, Create(device, n, kind_));
    return absl::OkStatus();
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  void Reset() {
    if (data_ == nullptr) return;
    if (kind_ == Kind::kDevice) {
      device_->api().Free(data_);
    } else {
      device_->api().FreePinned(data_);
    }
    data_ = nullptr;
    size_ = 0;
  }

  const Device* device_ = nullptr;
  T* data_ = nullptr;
  size_t size_ = 0;
  Kind kind_ = Kind::kDevice;
};

// "80 GiB of 140 GiB are free" and the like belong into the message of a failed allocation.
absl::Status OutOfDeviceMemory(const Device& device, size_t bytes);

template <class T>
absl::StatusOr<DeviceArray<T>> DeviceArray<T>::Create(const Device& device, size_t n, Kind kind) {
  DeviceArray array;
  array.kind_ = kind;
  array.device_ = &device;
  if (n == 0) return array;
  void* memory = nullptr;
  const kernels::KernelStatus status = kind == Kind::kDevice
                                           ? device.api().Allocate(n * sizeof(T), &memory)
                                           : device.api().AllocatePinned(n * sizeof(T), &memory);
  if (status != kernels::KernelStatus::kOk) return OutOfDeviceMemory(device, n * sizeof(T));
  array.data_ = static_cast<T*>(memory);
  array.size_ = n;
  return array;
}

}  // namespace oscarkv
