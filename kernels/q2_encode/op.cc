#include "kernels/q2_encode/op.h"

#include "kernels/q2_encode/op_backends.h"

namespace oscarkv::kernels {

KernelStatus EncodePageHead(Backend backend, const EncodeArgs& args, EncodeStats* stats) {
  if (backend == Backend::kCuda || !IsSupportedHeadDim(args.head_dim))
    return KernelStatus::kUnsupported;
  return backend == Backend::kRef ? ref::EncodePageHead(args, stats)
                                  : cpu::EncodePageHead(args, stats);
}

KernelStatus EncodePageHeadShaped(Backend backend, const ShapedArgs& args, EncodeStats* stats) {
  if (backend == Backend::kCuda || !IsSupportedHeadDim(args.head_dim))
    return KernelStatus::kUnsupported;
  return backend == Backend::kRef ? ref::EncodePageHeadShaped(args, stats)
                                  : cpu::EncodePageHeadShaped(args, stats);
}

KernelStatus EncodeBlockLayer(Backend backend, const KvShape& shape, const Bf16* block_layer,
                              const float clip_ratio[2], uint8_t* page_layer, EncodeStats* stats) {
  if (!shape.offsets) return KernelStatus::kUnsupported;
  EncodeArgs args;
  args.head_dim = shape.head_dim;
  args.row_stride = shape.head_dim;
  for (const Side side : {Side::kKey, Side::kValue}) {
    args.side = side;
    args.clip_ratio = clip_ratio[static_cast<int>(side)];
    args.rows = block_layer + static_cast<int>(side) * shape.Bf16SideElements();
    args.page_head = page_layer;
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      const KernelStatus status = EncodePageHead(backend, args, stats);
      if (status != KernelStatus::kOk) return status;
      args.rows += size_t{kPageTokens} * shape.head_dim;
      args.page_head += PageHeadBytes(shape.head_dim);
    }
  }
  return KernelStatus::kOk;
}

// Decoding returns nothing: it has no errors, and a build without CUDA decodes on the CPU whatever
// it is asked for.
void DecodePageHead(Backend backend, int head_dim, Side side, const uint8_t* page_head, float* rows,
                    bool offsets) {
  (backend == Backend::kRef ? ref::DecodePageHead : cpu::DecodePageHead)(head_dim, side, page_head,
                                                                         rows, offsets);
}

void DecodePageHeadBf16(Backend backend, int head_dim, Side side, const uint8_t* page_head,
                        Bf16* rows, int64_t row_stride, bool offsets) {
  (backend == Backend::kRef ? ref::DecodePageHeadBf16 : cpu::DecodePageHeadBf16)(
      head_dim, side, page_head, rows, row_stride, offsets);
}

}  // namespace oscarkv::kernels
