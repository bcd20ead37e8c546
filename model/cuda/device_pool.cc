#include "model/cuda/device_pool.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<DevicePool>> DevicePool::Create(const Device& device,
                                                               const KvPool& pool) {
  std::unique_ptr<DevicePool> p(new DevicePool(device, pool));
  ASSIGN_OR_RETURN(
      p->pages_, DeviceArray<uint8_t>::Create(device, pool.num_pages() * pool.shape().PageBytes()));
  ASSIGN_OR_RETURN(p->blocks_, DeviceArray<uint8_t>::Create(
                                   device, pool.num_blocks() * pool.shape().Bf16BlockBytes()));
  p->page_held_.resize(pool.num_pages());
  p->block_held_.resize(pool.num_blocks());
  p->block_dirty_.resize(pool.num_blocks());
  return p;
}

absl::Status DevicePool::TakePage(const KvPool& pool, int32_t id) {
  if (page_held_[id] == pool.page_generation(id)) return absl::OkStatus();
  OwnPage(pool, id);
  return device_.Check(device_.api().Copy(pages_.data() + id * page_stride(), pool.page(id),
                                          shape_.PageBytes(), device_.stream()),
                       "upload of a page");
}

absl::Status DevicePool::TakeBlock(const KvPool& pool, int32_t id) {
  if (block_held_[id] == pool.block_generation(id)) return absl::OkStatus();
  OwnBlock(pool, id);
  return device_.Check(device_.api().Copy(blocks_.data() + id * block_stride(), pool.block(id),
                                          shape_.Bf16BlockBytes(), device_.stream()),
                       "upload of a block");
}

void DevicePool::OwnPage(const KvPool& pool, int32_t id) {
  page_held_[id] = pool.page_generation(id);
}

void DevicePool::OwnBlock(const KvPool& pool, int32_t id) {
  if (block_held_[id] == pool.block_generation(id)) return;
  block_held_[id] = pool.block_generation(id);
  block_dirty_[id] = false;
}

absl::Status DevicePool::PageLayerToHost(const KvPool& pool, int32_t id, int layer,
                                         kernels::Stream stream) const {
  const uint8_t* from = pages_.data() + id * page_stride() + layer * shape_.PageLayerBytes();
  return device_.Check(
      device_.api().Copy(pool.page_layer(id, layer), from, shape_.PageLayerBytes(), stream),
      "copy of a page to the host");
}

absl::Status DevicePool::BlockLayerToHost(const KvPool& pool, int32_t id, int layer,
                                          kernels::Stream stream) const {
  const uint8_t* from = blocks_.data() + id * block_stride() + layer * shape_.Bf16LayerBytes();
  return device_.Check(
      device_.api().Copy(pool.block_layer(id, layer), from, shape_.Bf16LayerBytes(), stream),
      "copy of a block to the host");
}

absl::Status DevicePool::PageToHost(const KvPool& pool, int32_t id, kernels::Stream stream) const {
  return device_.Check(device_.api().Copy(pool.page(id), pages_.data() + id * page_stride(),
                                          shape_.PageBytes(), stream),
                       "copy of a page to the host");
}

absl::Status DevicePool::BlockToHost(const KvPool& pool, int32_t id, kernels::Stream stream,
                                     bool* copied) {
  *copied = block_held_[id] == pool.block_generation(id) && block_dirty_[id];
  if (!*copied) return absl::OkStatus();
  block_dirty_[id] = false;
  return device_.Check(device_.api().Copy(pool.block(id), blocks_.data() + id * block_stride(),
                                          shape_.Bf16BlockBytes(), stream),
                       "copy of a block to the host");
}

}  // namespace oscarkv
