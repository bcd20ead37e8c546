#include "kernels/q2_encode/op_backends.h"

namespace oscarkv::kernels::cpu {

KernelStatus EncodePageHead(const EncodeArgs& args, EncodeStats* stats) {
  return ref::EncodePageHead(args, stats);
}

void DecodePageHead(int head_dim, Side side, const uint8_t* page_head, float* rows) {
  ref::DecodePageHead(head_dim, side, page_head, rows);
}

void DecodePageHeadBf16(int head_dim, Side side, const uint8_t* page_head, Bf16* rows,
                        int64_t row_stride) {
  ref::DecodePageHeadBf16(head_dim, side, page_head, rows, row_stride);
}

}  // namespace oscarkv::kernels::cpu
