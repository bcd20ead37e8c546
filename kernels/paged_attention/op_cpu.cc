// The simple CPU version: fp32, one (sequence, kv head) per task; a page-head is unpacked once into
// L1-sized scratch rows and shared by the heads of its group.
#include <algorithm>
#include <cmath>

#include "kernels/convert.h"
#include "kernels/paged_attention/op_backends.h"
#include "kernels/q2_encode/op.h"

namespace oscarkv::kernels::cpu {
namespace {

constexpr int kMaxHeadDim = 128;

// K and V of up to 64 tokens of one kv head.
struct Tile {
  alignas(64) float k[kPageTokens * kMaxHeadDim];
  alignas(64) float v[kPageTokens * kMaxHeadDim];
};

struct HeadState {
  float max = -INFINITY, sum = 0;
  alignas(64) float out[kMaxHeadDim] = {};
};

// Eight partial sums, so that the compiler may use vectors without changing the order of additions.
float Dot(const float* a, const float* b, int n) {
  float sums[8] = {};
  for (int i = 0; i < n; i += 8) {
    for (int l = 0; l < 8; ++l) sums[l] += a[i + l] * b[i + l];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void Attend(const float* q, float scale, int d, const Tile& tile, int tokens, HeadState* state) {
  float weights[kPageTokens];
  float max = state->max;
  for (int t = 0; t < tokens; ++t) {
    weights[t] = Dot(q, tile.k + t * d, d) * scale;
    max = std::max(max, weights[t]);
  }
  const float factor = std::exp(state->max - max);
  state->max = max;
  state->sum *= factor;
  for (int c = 0; c < d; ++c) state->out[c] *= factor;
  for (int t = 0; t < tokens; ++t) {
    const float weight = std::exp(weights[t] - max);
    state->sum += weight;
    const float* v = tile.v + t * d;
    for (int c = 0; c < d; ++c) state->out[c] += weight * v[c];
  }
}

void AttendSequence(const PagedAttentionArgs& args, int seq, int head) {
  const int d = args.head_dim;
  const int64_t first =
      (int64_t{seq} * args.num_kv_heads + head) * args.group;  // row of q, out and lse
  Tile tile;
  HeadState states[kMaxGroup];
  const auto attend = [&](int tokens) {
    for (int i = 0; i < args.group; ++i)
      Attend(args.q + (first + i) * d, args.scale, d, tile, tokens, &states[i]);
  };
  for (int p = args.page_begin[seq]; p < args.page_begin[seq + 1]; ++p) {
    const uint8_t* page =
        args.page_pool + args.page_ids[p] * args.page_stride + head * PageHeadBytes(d);
    DecodePageHead(Backend::kCpu, d, Side::kKey, page, tile.k);
    DecodePageHead(Backend::kCpu, d, Side::kValue, page, tile.v);
    attend(kPageTokens);
  }
  for (int b = args.bf16_begin[seq]; b < args.bf16_begin[seq + 1]; ++b) {
    const int tokens = b + 1 == args.bf16_begin[seq + 1] ? args.last_tokens[seq] : kPageTokens;
    const auto* k =
        reinterpret_cast<const Bf16*>(args.bf16_pool + args.bf16_ids[b] * args.bf16_stride) +
        int64_t{head} * kPageTokens * d;
    ConvertToFloat(k, tokens * d, tile.k);
    ConvertToFloat(k + int64_t{args.num_kv_heads} * kPageTokens * d, tokens * d, tile.v);
    attend(tokens);
  }
  for (int i = 0; i < args.group; ++i) {
    for (int c = 0; c < d; ++c) args.out[(first + i) * d + c] = states[i].out[c] / states[i].sum;
    if (args.lse != nullptr) args.lse[first + i] = states[i].max + std::log(states[i].sum);
  }
}

}  // namespace

KernelStatus PagedAttention(const PagedAttentionArgs& args, Executor* executor) {
  const auto run = [&](int i) {
    AttendSequence(args, i / args.num_kv_heads, i % args.num_kv_heads);
  };
  const int n = args.num_seqs * args.num_kv_heads;
  if (executor != nullptr) {
    executor->ParallelFor(n, run);
  } else {
    for (int i = 0; i < n; ++i) run(i);
  }
  return KernelStatus::kOk;
}

}  // namespace oscarkv::kernels::cpu
