#include "kernels/paged_attention/op.h"

#include "kernels/paged_attention/op_backends.h"

namespace oscarkv::kernels {

KernelStatus PagedAttention(Backend backend, const PagedAttentionArgs& args, Executor* executor) {
  if (backend == Backend::kCuda || !IsSupportedHeadDim(args.head_dim) || args.group < 1 ||
      args.group > kMaxGroup || args.rounded != nullptr) {
    return KernelStatus::kUnsupported;
  }
  return (backend == Backend::kRef ? ref::PagedAttention : cpu::PagedAttention)(args, executor);
}

}  // namespace oscarkv::kernels
