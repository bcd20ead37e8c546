#include "worker/pool_size.h"

#include "absl/strings/str_cat.h"
#include "common/options.h"

namespace oscarkv::worker {

absl::StatusOr<PoolSlots> SizePools(const PoolRequest& request, const kernels::KvShape& shape,
                                    bool coded, const PoolDefaults& defaults, uint64_t free_bytes) {
  const uint64_t page = shape.PageBytes(), block = shape.Bf16BlockBytes();
  const bool choose_pages = coded && request.page_bytes == 0,
             choose_blocks = request.block_bytes == 0;
  PoolSlots slots;
  slots.pages = !coded ? 0 : choose_pages ? defaults.pages : request.page_bytes / page;
  slots.blocks = choose_blocks ? defaults.blocks : request.block_bytes / block;
  if (request.fraction > 0 && (choose_pages || choose_blocks)) {
    const bool grow_blocks = choose_blocks && (defaults.more_blocks_help || !coded);
    const auto bytes = [](bool count, uint64_t slots, uint64_t size) {
      return count ? static_cast<double>(slots) * static_cast<double>(size) : 0.0;
    };
    const double fixed =
        bytes(!choose_pages, slots.pages, page) + bytes(!grow_blocks, slots.blocks, block);
    const double suits =
        bytes(choose_pages, slots.pages, page) + bytes(grow_blocks, slots.blocks, block);
    const double left = request.fraction * static_cast<double>(free_bytes) - fixed;
    const double factor = left > 0 && suits > 0 ? left / suits : 0;
    const auto scaled = [factor](uint64_t n) {
      return static_cast<uint64_t>(factor * static_cast<double>(n));
    };
    if (choose_pages) slots.pages = scaled(slots.pages);
    if (grow_blocks) slots.blocks = scaled(slots.blocks);
    if (slots.blocks == 0 || (coded && slots.pages == 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--pool-fraction=", request.fraction, " of the ", FormatBytes(free_bytes),
                       " that are free leaves no room for pools of this model's pages (",
                       FormatBytes(page), ") and blocks (", FormatBytes(block), ")"));
    }
  }
  if (slots.blocks == 0 || (coded && slots.pages == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--page-pool and --block-pool must hold at least one of this model's pages (",
                     FormatBytes(page), ") and blocks (", FormatBytes(block), ")"));
  }
  return slots;
}

}  // namespace oscarkv::worker
