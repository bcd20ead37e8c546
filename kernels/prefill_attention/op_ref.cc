// The specification: one query of one head after the other, in float64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/prefill_attention/op_backends.h"

namespace oscarkv::kernels::ref {
namespace {

double Element(const PrefillAttentionArgs& args, const void* base, int64_t index) {
  return args.type == KvType::kBf16 ? ToFloat(static_cast<const Bf16*>(base)[index])
                                    : static_cast<const float*>(base)[index];
}

// `row` indexes q and out: query * heads + head.
void AttendRow(const PrefillAttentionArgs& args, int query, int head) {
  const int d = args.head_dim;
  const int64_t row = int64_t{query} * args.num_kv_heads * args.group + head;
  const int64_t kv_head = head / args.group;
  const int position = args.start + query;
  const int history_end = HistoryEnd(args, position / kPageTokens);
  const auto from_history = [&](int p) {
    return p >= kPageTokens && p / kPageTokens < history_end;
  };

  std::vector<double> scores(position + 1);
  double max = -INFINITY;
  for (int p = 0; p <= position; ++p) {
    const void* k = from_history(p) ? args.k_history : args.k_exact;
    double dot = 0;
    for (int c = 0; c < d; ++c)
      dot +=
          args.q[row * d + c] * Element(args, k, kv_head * args.head_stride + int64_t{p} * d + c);
    scores[p] = dot * args.scale;
    max = std::max(max, scores[p]);
  }
  std::vector<double> out(d);
  double sum = 0;
  for (int p = 0; p <= position; ++p) {
    const void* v = from_history(p) ? args.v_history : args.v_exact;
    const double weight = std::exp(scores[p] - max);
    sum += weight;
    for (int c = 0; c < d; ++c)
      out[c] += weight * Element(args, v, kv_head * args.head_stride + int64_t{p} * d + c);
  }
  for (int c = 0; c < d; ++c) args.out[row * d + c] = static_cast<float>(out[c] / sum);
}

}  // namespace

KernelStatus PrefillAttention(const PrefillAttentionArgs& args, Executor* executor) {
  const int heads = args.num_kv_heads * args.group;
  const auto run = [&](int i) { AttendRow(args, i / heads, i % heads); };
  const int n = args.num_queries * heads;
  if (executor != nullptr) {
    executor->ParallelFor(n, run);
  } else {
    for (int i = 0; i < n; ++i) run(i);
  }
  return KernelStatus::kOk;
}

}  // namespace oscarkv::kernels::ref
