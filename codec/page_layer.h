// Internal to the room: what the 2-bit codecs share.
#pragma once

#include "absl/status/status.h"
#include "kernels/layout.h"
#include "kernels/types.h"

namespace oscarkv {

// One layer of a page to the layer of a bf16 block: all kv heads, both sides.
void DecodePageLayer(const kernels::KvShape& shape, const uint8_t* page_layer,
                     kernels::Bf16* block_layer);

// What an encoder's status means to whoever encodes layer `layer`.
absl::Status EncodeStatus(kernels::KernelStatus status, int layer, int head_dim);

}  // namespace oscarkv
