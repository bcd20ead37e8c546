// The work is split over (sequence, kv head) and, where these are few, over ranges of pages and
// blocks; the parts of a sequence are merged in their order.
#include "kernels/simd_targets.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/paged_attention/op_cpu.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "hwy/highway.h"
#include "kernels/paged_attention/blocks-inl.h"
#include "kernels/paged_attention/op_backends.h"
#include "kernels/paged_attention/pages-inl.h"
#include "kernels/paged_attention/part.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

bool HasVectors() {
  return false;
}
void AttendPart(const PagedAttentionArgs& /*args*/, const Part& /*part*/, Partial* /*result*/) {}

#else

bool HasVectors() {
  return true;
}

template <int kHeadDim, bool kOffsets>
void AttendPartOf(const PagedAttentionArgs& args, const Part& part, Partial* result) {
  using Pages = PageAttention<kHeadDim, kOffsets>;
  using Blocks = BlockAttention<kHeadDim>;
  const float* q =
      args.q + (int64_t{part.seq} * args.num_kv_heads + part.head) * args.group * kHeadDim;
  const float scale_log2 = args.scale * 1.44269504f;
  SoftmaxState state;
  state.Clear(args.group);
  // Pages come first, in their own order of channels.
  if (part.page_begin < part.page_end) {
    Pages pages(q, args.group, scale_log2);
    const auto page = [&](int i) {
      return args.page_pool + args.page_ids[i] * args.page_stride +
             part.head * PageHeadBytes(kHeadDim, kOffsets);
    };
    pages.Run(part.page_begin, part.page_end, page, &state);
  }
  for (int h = 0; h < args.group; ++h) {
    float offset = 0;
    for (int i = 0; i < kLanes; ++i) offset += state.offsets[h][i];
    for (int i = 0; i < kHeadDim; ++i) result->out[h][Pages::Channel(i)] = state.out[h][i] + offset;
    for (int i = 0; i < kHeadDim; ++i) state.out[h][i] = result->out[h][Blocks::Channel(i)];
  }
  if (part.block_begin < part.block_end) {
    Blocks blocks(q, args.group, scale_log2);
    const int last = args.bf16_begin[part.seq + 1] - 1;
    const auto block = [&](int i) {
      const auto* bytes = args.bf16_pool + args.bf16_ids[i] * args.bf16_stride;
      const auto* k =
          reinterpret_cast<const Bf16*>(bytes) + int64_t{part.head} * kPageTokens * kHeadDim;
      return typename Blocks::Block{k, k + int64_t{args.num_kv_heads} * kPageTokens * kHeadDim,
                                    i == last ? args.last_tokens[part.seq] : kPageTokens};
    };
    blocks.Run(part.block_begin, part.block_end, block, &state);
  }
  for (int h = 0; h < args.group; ++h) {
    result->max[h] = state.max[h];
    result->sum[h] = 0;
    for (int i = 0; i < kLanes; ++i) result->sum[h] += state.sums[h][i];
    for (int i = 0; i < kHeadDim; ++i) result->out[h][Blocks::Channel(i)] = state.out[h][i];
  }
}

void AttendPart(const PagedAttentionArgs& args, const Part& part, Partial* result) {
  if (args.offsets) {
    (args.head_dim == 64 ? AttendPartOf<64, true> : AttendPartOf<128, true>)(args, part, result);
  } else {
    (args.head_dim == 64 ? AttendPartOf<64, false> : AttendPartOf<128, false>)(args, part, result);
  }
}

#endif  // HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv::kernels {

HWY_EXPORT(AttendPart);
HWY_EXPORT(HasVectors);

namespace cpu {
namespace {

// What a page and a bf16 block cost, relative to each other.
constexpr int64_t kPageCost = 2, kBlockCost = 5;
constexpr int64_t kMinPartCost = 32 * kPageCost;  // below, splitting costs more than it gains
constexpr int kPartsPerThread = 4;                // when everything is split evenly

// The first of `count` items, each of `cost`, the first at `start`, that begins at `at` or later.
int FirstItem(int64_t at, int64_t start, int64_t cost, int count) {
  return static_cast<int>(std::clamp<int64_t>((at - start + cost - 1) / cost, 0, int64_t{count}));
}

// Parts in the order of sequence, kv head, position. Depends on shapes and `threads` alone.
class Plan {
 public:
  Plan(const PagedAttentionArgs& args, int threads) {
    int64_t total = 0;
    for (int seq = 0; seq < args.num_seqs; ++seq) total += Cost(args, seq) * args.num_kv_heads;
    const int64_t target = std::max(kMinPartCost, total / (int64_t{kPartsPerThread} * threads) + 1);
    for (int seq = 0; seq < args.num_seqs; ++seq) {
      const int64_t cost = Cost(args, seq);
      const auto n = threads == 1 ? 1 : static_cast<int>((cost + target - 1) / target);
      split_ |= n > 1;
      for (int head = 0; head < args.num_kv_heads; ++head) {
        for (int i = 0; i < n; ++i) parts_.push_back(Slice(args, seq, head, cost, i, n));
      }
    }
  }
  const std::vector<Part>& parts() const { return parts_; }
  bool split() const { return split_; }

 private:
  static int Pages(const PagedAttentionArgs& args, int seq) {
    return args.page_begin[seq + 1] - args.page_begin[seq];
  }
  static int Blocks(const PagedAttentionArgs& args, int seq) {
    return args.bf16_begin[seq + 1] - args.bf16_begin[seq];
  }
  static int64_t Cost(const PagedAttentionArgs& args, int seq) {
    return Pages(args, seq) * kPageCost + Blocks(args, seq) * kBlockCost;
  }
  static Part Slice(const PagedAttentionArgs& args, int seq, int head, int64_t cost, int i, int n) {
    const int pages = Pages(args, seq), blocks = Blocks(args, seq);
    const int64_t from = cost * i / n, to = cost * (i + 1) / n;
    const int page = args.page_begin[seq], block = args.bf16_begin[seq];
    return {seq,
            head,
            page + FirstItem(from, 0, kPageCost, pages),
            page + FirstItem(to, 0, kPageCost, pages),
            block + FirstItem(from, pages * kPageCost, kBlockCost, blocks),
            block + FirstItem(to, pages * kPageCost, kBlockCost, blocks)};
  }

  std::vector<Part> parts_;
  bool split_ = false;
};

// Merges the partial results of one sequence and kv head, in their order, and writes the outputs.
void Finish(const PagedAttentionArgs& args, const Part& part, const Partial* partials, int n) {
  const int64_t first = (int64_t{part.seq} * args.num_kv_heads + part.head) * args.group;
  for (int h = 0; h < args.group; ++h) {
    float max = -INFINITY, sum = 0;
    for (int i = 0; i < n; ++i) max = std::max(max, partials[i].max[h]);
    float* out = args.out + (first + h) * args.head_dim;
    std::fill_n(out, args.head_dim, 0.0f);
    for (int i = 0; i < n; ++i) {
      const float factor = std::exp2(partials[i].max[h] - max);
      sum += factor * partials[i].sum[h];
      for (int c = 0; c < args.head_dim; ++c) out[c] += factor * partials[i].out[h][c];
    }
    const float inverse = 1 / sum;
    for (int c = 0; c < args.head_dim; ++c) out[c] *= inverse;
    if (args.lse != nullptr) args.lse[first + h] = (max + std::log2(sum)) * 0.693147181f;
  }
}

void ForAll(Executor* executor, size_t n, const std::function<void(int)>& f) {
  if (executor != nullptr) {
    executor->ParallelFor(static_cast<int>(n), f);
  } else {
    for (size_t i = 0; i < n; ++i) f(static_cast<int>(i));
  }
}

}  // namespace

KernelStatus PagedAttention(const PagedAttentionArgs& args, Executor* executor) {
  if (!HWY_DYNAMIC_DISPATCH(HasVectors)()) return ref::PagedAttention(args, executor);
  const auto attend = HWY_DYNAMIC_DISPATCH(AttendPart);
  const Plan plan(args, executor != nullptr ? executor->num_threads() : 1);
  const std::vector<Part>& parts = plan.parts();
  if (!plan.split()) {
    ForAll(executor, parts.size(), [&](int i) {
      Partial partial;
      attend(args, parts[i], &partial);
      Finish(args, parts[i], &partial, 1);
    });
    return KernelStatus::kOk;
  }
  std::vector<Partial> partials(parts.size());
  ForAll(executor, parts.size(), [&](int i) { attend(args, parts[i], &partials[i]); });
  for (size_t begin = 0, end; begin < parts.size(); begin = end) {
    for (end = begin + 1; end < parts.size() && parts[end].seq == parts[begin].seq &&
                          parts[end].head == parts[begin].head;) {
      ++end;
    }
    Finish(args, parts[begin], &partials[begin], static_cast<int>(end - begin));
  }
  return KernelStatus::kOk;
}

}  // namespace cpu
}  // namespace oscarkv::kernels
#endif  // HWY_ONCE
