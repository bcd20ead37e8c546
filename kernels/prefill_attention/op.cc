#include "kernels/prefill_attention/op.h"

#include "kernels/prefill_attention/op_backends.h"

namespace oscarkv::kernels {

KernelStatus PrefillAttention(Backend backend, const PrefillAttentionArgs& args,
                              Executor* executor) {
  if (backend == Backend::kCuda || args.group < 1 || args.group > kMaxGroup)
    return KernelStatus::kUnsupported;
  return (backend == Backend::kRef ? ref::PrefillAttention : cpu::PrefillAttention)(args, executor);
}

}  // namespace oscarkv::kernels
