// The implementations behind op.h; internal.
#pragma once

#include "kernels/paged_attention/op.h"

namespace oscarkv::kernels {
namespace ref {
KernelStatus PagedAttention(const PagedAttentionArgs& args, Executor* executor);
}  // namespace ref
namespace cpu {
KernelStatus PagedAttention(const PagedAttentionArgs& args, Executor* executor);
}  // namespace cpu
}  // namespace oscarkv::kernels
