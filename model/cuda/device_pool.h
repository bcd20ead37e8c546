// A KvPool's slots in device memory: slot for slot and byte for byte the host's, with a note of
// which side of each slot is the newer one.
//
// The host's memory of a slot counts from its allocation to its first use here, the device's from
// then on (model_runner.h, ToHost).
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/cuda/device.h"
#include "model/kv_pool.h"

namespace oscarkv {

// Of the runner's thread.
class DevicePool {
 public:
  // kResourceExhausted: the device does not have the memory.
  static absl::StatusOr<std::unique_ptr<DevicePool>> Create(const Device& device,
                                                            const KvPool& pool);

  uint64_t serial() const { return serial_; }
  const kernels::KvShape& shape() const { return shape_; }
  int num_pages() const { return static_cast<int>(page_held_.size()); }
  int num_blocks() const { return static_cast<int>(block_held_.size()); }
  uint8_t* pages() const { return pages_.data(); }
  uint8_t* blocks() const { return blocks_.data(); }
  int64_t page_stride() const { return static_cast<int64_t>(shape_.PageBytes()); }
  int64_t block_stride() const { return static_cast<int64_t>(shape_.Bf16BlockBytes()); }

  // Copies the slot to the device unless that holds it already.
  absl::Status TakePage(const KvPool& pool, int32_t id);
  absl::Status TakeBlock(const KvPool& pool, int32_t id);
  // The device writes the slot from its beginning: nothing of the host's is needed.
  void OwnPage(const KvPool& pool, int32_t id);
  void OwnBlock(const KvPool& pool, int32_t id);
  // The device wrote rows of the slot that the host does not have.
  void SetBlockDirty(int32_t id) { block_dirty_[id] = true; }
  void SetBlockClean(int32_t id) { block_dirty_[id] = false; }

  // Starts copies to the host's memory, on `stream`.
  absl::Status PageLayerToHost(const KvPool& pool, int32_t id, int layer,
                               kernels::Stream stream) const;
  absl::Status BlockLayerToHost(const KvPool& pool, int32_t id, int layer,
                                kernels::Stream stream) const;
  absl::Status PageToHost(const KvPool& pool, int32_t id, kernels::Stream stream) const;
  // Does nothing where the host has it already. *copied: whether it did.
  absl::Status BlockToHost(const KvPool& pool, int32_t id, kernels::Stream stream, bool* copied);

 private:
  DevicePool(const Device& device, const KvPool& pool)
      : device_(device), serial_(pool.serial()), shape_(pool.shape()) {}

  const Device& device_;
  const uint64_t serial_;
  const kernels::KvShape shape_;
  DeviceArray<uint8_t> pages_, blocks_;
  std::vector<uint32_t> page_held_, block_held_;  // the generation that the device holds; 0: none
  std::vector<bool> block_dirty_;
};

}  // namespace oscarkv
