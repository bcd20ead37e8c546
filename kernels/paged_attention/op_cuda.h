// Decode attention on a GPU: the op of op.h with every pointer of the arguments in device memory.
//
// A step of a model calls Plan once and Run once per layer, all on one stream:
//   Plan reads the counts (page_begin, bf16_begin, last_tokens) on the device and cuts the batch's
//   work into equal slices, one per thread block; every layer of the step uses that plan.
//   Run attends one layer in one launch.
// Relative errors (2-norm of a head) against float64 on the stored codes: about 5e-5 up to 4 heads
// a group, 1e-3 beyond, more where the result is small because V's values cancel or where K is huge
// (the test bounds 5e-4 and 2e-3; bench/results/paged_attention_h200.md says where they come from).
//
// Neither reads anything on the host, allocates, or waits: both may be captured in a CUDA graph,
// which is then replayed while the contents of q, the counts, the ids and the pools change. Baked
// into the graph are pointers, strides and num_seqs.
#pragma once

#include "kernels/paged_attention/op.h"

namespace oscarkv::kernels::cuda {

// Bytes of device memory that Plan and Run need for at most `max_seqs` sequences on the current
// device; 0 if the shape is not supported or there is no device. The workspace belongs to one
// stream at a time, needs no initialisation, and does not depend on the sequences' lengths.
size_t PagedAttentionWorkspaceBytes(int max_seqs, int num_kv_heads, int group, int head_dim);

// Both return kOk, kUnsupported (also of pages without offsets), or kDevice (see LastError).
// Preconditions beyond op.h's: `args` are device pointers; pools, strides and workspace are
// multiples of 16 bytes; num_seqs is at most the workspace's max_seqs. A sequence with no token at
// all is allowed: its rows of `out` and `lse` are not written. Results are the same bit for bit
// from run to run on the same device.
KernelStatus PlanPagedAttention(const PagedAttentionArgs& args, void* workspace, Stream stream);
KernelStatus RunPagedAttention(const PagedAttentionArgs& args, void* workspace, Stream stream);

}  // namespace oscarkv::kernels::cuda
