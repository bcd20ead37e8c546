#include "model/cuda/device.h"

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "model/cuda/cuda_library.h"
#include "model/model_runner.h"

namespace oscarkv {

using kernels::KernelStatus;

absl::StatusOr<std::unique_ptr<Device>> Device::Open(int ordinal) {
  ASSIGN_OR_RETURN(const Api* api, OpenCudaLibrary());
  const auto unavailable = [&](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("device cuda:", ordinal, ": ", why));
  };
  if (api->DeviceCount() == 0) {
    const absl::string_view why = api->LastError();
    return unavailable(why.empty() ? "no GPU that this build has code for" : why);
  }
  if (const KernelStatus status = api->UseDevice(ordinal); status != KernelStatus::kOk) {
    return unavailable(status == KernelStatus::kUnsupported ? "this build has no code for this GPU"
                                                            : absl::string_view(api->LastError()));
  }
  auto device = std::unique_ptr<Device>(new Device(api, ordinal));
  for (kernels::Stream* stream : {&device->stream_, &device->to_host_}) {
    if (api->CreateStream(stream) != KernelStatus::kOk) return unavailable(api->LastError());
  }
  if (api->CreateMatmul(&device->matmul_) != KernelStatus::kOk)
    return unavailable(api->LastError());
  return device;
}

Device::~Device() {
  api_->UseDevice(ordinal_);
  api_->DestroyMatmul(matmul_);
  for (const kernels::Stream stream : {stream_, to_host_}) {
    if (stream.handle != nullptr) api_->DestroyStream(stream);
  }
}

absl::Status Device::Enter() const {
  return Check(api_->UseDevice(ordinal_), "UseDevice");
}

absl::Status Device::Check(KernelStatus status, absl::string_view what) const {
  switch (status) {
    case KernelStatus::kOk:
      return absl::OkStatus();
    case KernelStatus::kUnsupported:
      return absl::UnimplementedError(
          absl::StrCat("cuda:", ordinal_, " has no kernel for this model's shape: ", what));
    case KernelStatus::kNonFinite:
      return absl::InternalError(absl::StrCat(what, " met Inf or NaN"));
    case KernelStatus::kDevice:
      break;
  }
  return absl::InternalError(absl::StrCat("cuda:", ordinal_, ": ", what, ": ", api_->LastError()));
}

absl::Status Device::Synchronize() const {
  RETURN_IF_ERROR(Check(api_->Synchronize(stream_), "computing"));
  return Check(api_->Synchronize(to_host_), "copying");
}

absl::StatusOr<GpuInfo> DescribeGpu(absl::string_view device) {
  ASSIGN_OR_RETURN(const int ordinal, ParseDevice(device));
  ASSIGN_OR_RETURN(const Device::Api* api, OpenCudaLibrary());
  kernels::cuda::DeviceInfo info;
  if (ordinal < 0 || api->UseDevice(ordinal) != KernelStatus::kOk ||
      api->DescribeDevice(&info) != KernelStatus::kOk)
    return absl::UnavailableError(absl::StrCat("device ", device, ": ", api->LastError()));
  return GpuInfo{info.pci_id, info.free_bytes, info.total_bytes};
}

absl::StatusOr<kernels::cuda::DeviceInfo> Device::Describe() const {
  kernels::cuda::DeviceInfo info;
  RETURN_IF_ERROR(Check(api_->DescribeDevice(&info), "DescribeDevice"));
  return info;
}

absl::Status OutOfDeviceMemory(const Device& device, size_t bytes) {
  const std::string why = device.api().LastError();
  const absl::StatusOr<kernels::cuda::DeviceInfo> info = device.Describe();
  return absl::ResourceExhaustedError(
      absl::StrCat("no ", FormatBytes(bytes), " of device memory (", why,
                   info.ok() ? absl::StrCat("; ", FormatBytes(info->free_bytes), " of ",
                                            FormatBytes(info->total_bytes), " are free")
                             : "",
                   "): make --page-pool, --block-pool or --max-batch smaller"));
}

}  // namespace oscarkv
