// The specification: online softmax in float64 over one (sequence, kv head) after another, page by
// page.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/paged_attention/op_backends.h"

namespace oscarkv::kernels::ref {
namespace {

// K and V of up to 64 tokens of one kv head, in float64.
struct Tile {
  std::vector<double> k, v;  // [64][head_dim]
  int tokens = 0;
};

double PlaneValue(const uint8_t* page_head, int head_dim, int plane, int token) {
  Fp16 bits;
  std::memcpy(&bits,
              page_head + MetaOffset(head_dim) + 2 * (plane * kPageTokens + MetaIndex(token)), 2);
  return Fp16ToFloat(bits);
}

double CodeAt(const uint8_t* codes, CodePosition at) {
  return codes[4 * at.word + at.bit / 8] >> at.bit % 8 & 3;
}

void LoadPage(const uint8_t* page_head, int d, bool offsets, Tile* tile) {
  tile->tokens = kPageTokens;
  for (int t = 0; t < kPageTokens; ++t) {
    const double ks = PlaneValue(page_head, d, 0, t);
    const double vs = PlaneValue(page_head, d, offsets ? 2 : 1, t);
    const double ko = offsets ? PlaneValue(page_head, d, 1, t) : kCentredOffset * ks;
    const double vo = offsets ? PlaneValue(page_head, d, 3, t) : kCentredOffset * vs;
    for (int c = 0; c < d; ++c) {
      tile->k[t * d + c] = CodeAt(page_head, KeyPosition(d, t, c)) * ks + ko;
      tile->v[t * d + c] = CodeAt(page_head + CodesBytes(d), ValuePosition(d, t, c)) * vs + vo;
    }
  }
}

void LoadBf16(const Bf16* block, int num_kv_heads, int head, int d, int tokens, Tile* tile) {
  tile->tokens = tokens;
  const Bf16* k = block + int64_t{head} * kPageTokens * d;
  const Bf16* v = k + int64_t{num_kv_heads} * kPageTokens * d;
  for (int i = 0; i < tokens * d; ++i) {
    tile->k[i] = ToFloat(k[i]);
    tile->v[i] = ToFloat(v[i]);
  }
}

// One query head's softmax so far.
struct HeadState {
  double max = -INFINITY, sum = 0;
  std::vector<double> out;
};

void Attend(const float* q, double scale, int d, const Tile& tile, HeadState* state) {
  double scores[kPageTokens];
  double max = state->max;
  for (int t = 0; t < tile.tokens; ++t) {
    double dot = 0;
    for (int c = 0; c < d; ++c) dot += q[c] * tile.k[t * d + c];
    scores[t] = dot * scale;
    max = std::max(max, scores[t]);
  }
  const double factor = std::exp(state->max - max);
  state->max = max;
  state->sum *= factor;
  for (double& o : state->out) o *= factor;
  for (int t = 0; t < tile.tokens; ++t) {
    const double weight = std::exp(scores[t] - max);
    state->sum += weight;
    for (int c = 0; c < d; ++c) state->out[c] += weight * tile.v[t * d + c];
  }
}

void AttendSequence(const PagedAttentionArgs& args, int seq, int head) {
  const int d = args.head_dim;
  const int64_t first =
      (int64_t{seq} * args.num_kv_heads + head) * args.group;  // row of q, out and lse
  Tile tile{std::vector<double>(kPageTokens * d), std::vector<double>(kPageTokens * d)};
  std::vector<HeadState> states(args.group, HeadState{-INFINITY, 0, std::vector<double>(d)});
  const auto attend = [&] {
    for (int i = 0; i < args.group; ++i)
      Attend(args.q + (first + i) * d, args.scale, d, tile, &states[i]);
  };
  for (int p = args.page_begin[seq]; p < args.page_begin[seq + 1]; ++p) {
    LoadPage(args.page_pool + args.page_ids[p] * args.page_stride +
                 head * PageHeadBytes(d, args.offsets),
             d, args.offsets, &tile);
    attend();
  }
  for (int b = args.bf16_begin[seq]; b < args.bf16_begin[seq + 1]; ++b) {
    const bool last = b + 1 == args.bf16_begin[seq + 1];
    const auto* block =
        reinterpret_cast<const Bf16*>(args.bf16_pool + args.bf16_ids[b] * args.bf16_stride);
    LoadBf16(block, args.num_kv_heads, head, d, last ? args.last_tokens[seq] : kPageTokens, &tile);
    attend();
  }
  for (int i = 0; i < args.group; ++i) {
    for (int c = 0; c < d; ++c)
      args.out[(first + i) * d + c] = static_cast<float>(states[i].out[c] / states[i].sum);
    if (args.lse != nullptr)
      args.lse[first + i] = static_cast<float>(states[i].max + std::log(states[i].sum));
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

}  // namespace oscarkv::kernels::ref
