// Attention over bf16 blocks in fp32, compiled once per instruction set. Keys and values are loaded
// once for the heads of a register block. A vector of 32-bit words holds an even and an odd channel
// in each word: q and out are kept in that order.
#if defined(OSCARKV_KERNELS_PAGED_ATTENTION_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_PAGED_ATTENTION_BLOCKS_INL_H_
#undef OSCARKV_KERNELS_PAGED_ATTENTION_BLOCKS_INL_H_
#else
#define OSCARKV_KERNELS_PAGED_ATTENTION_BLOCKS_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/layout.h"
#include "kernels/paged_attention/softmax-inl.h"
#include "kernels/types.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

template <int kHeadDim>
class BlockAttention {
 public:
  // K and V of one kv head of a block: [tokens, head_dim] each.
  struct Block {
    const Bf16* k;
    const Bf16* v;
    int tokens;
  };

  // `q` [group, head_dim]; `scale_log2` includes the change to base 2.
  BlockAttention(const float* q, int group, float scale_log2) : group_(group) {
    for (int h = 0; h < group; ++h) {
      for (int i = 0; i < kHeadDim; ++i) q_[h][i] = q[h * kHeadDim + Channel(i)] * scale_log2;
    }
  }

  // Blocks block(begin) .. block(end - 1).
  template <class GetBlock>
  void Run(int begin, int end, const GetBlock& block, SoftmaxState* state) {
    for (int b = begin; b < end; ++b) {
      block_ = block(b);
      next_ = b + 1 < end ? block(b + 1) : Block{};
      for (int h = 0, heads; h < group_; h += heads) {
        heads = HeadBlock(group_ - h);
        if (heads == 4) {
          Attend<4>(h, state);
        } else if (heads == 2) {
          Attend<2>(h, state);
        } else {
          Attend<1>(h, state);
        }
      }
    }
  }

  // The channel at position i of SoftmaxState::out.
  static int Channel(int i) {
    const int vector = i / kLanes;
    return (vector / 2 * kLanes + i % kLanes) * 2 + vector % 2;
  }

 private:
  static constexpr int kTokensAtOnce = 4;
  static constexpr int kPairs = kHeadDim / (2 * kLanes);  // of vectors: even and odd channels
  static constexpr int kPairsAtOnce = 2;

  template <int kHeads>
  HWY_INLINE void Attend(int h0, SoftmaxState* state) {
    for (int t = 0; t < block_.tokens; t += kTokensAtOnce) Scores<kHeads>(h0, t);
    Softmax<kHeads>(h0, state);
    for (int pair = 0; pair < kPairs; pair += kPairsAtOnce) Values<kHeads>(h0, pair, state);
  }

  static HWY_INLINE void LoadPair(const Bf16* row, int pair, Floats* even, Floats* odd) {
    const FloatsTag d;
    const hn::Repartition<uint16_t, FloatsTag> d16;
    const hn::Repartition<uint32_t, FloatsTag> d32;
    const auto words = hn::BitCast(d32, hn::LoadU(d16, row + pair * 2 * kLanes));
    *even = hn::BitCast(d, hn::ShiftLeft<16>(words));
    *odd = hn::BitCast(d, hn::And(words, hn::Set(d32, 0xffff0000u)));
  }

  // The sums of the lanes of a vector whose 128-bit blocks hold four partial sums each.
  template <class D, class V>
  static HWY_INLINE void StoreSumOfBlocks(D d, V v, float* to) {
    if constexpr (hn::MaxLanes(D()) == 4) {
      hn::StoreU(v, d, to);
    } else {
      const hn::Half<D> half;
      StoreSumOfBlocks(half, hn::Add(hn::UpperHalf(half, v), hn::LowerHalf(half, v)), to);
    }
  }
  static HWY_INLINE void StoreLaneSums(Floats a, Floats b, Floats c, Floats e, float* to) {
    const FloatsTag d;
    const hn::Repartition<uint64_t, FloatsTag> d64;
    const auto ab =
        hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
    const auto ce =
        hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
    StoreSumOfBlocks(d,
                     hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab, ce)),
                             hn::BitCast(d, hn::InterleaveUpper(d64, ab, ce))),
                     to);
  }

  // Scores of four tokens from t; behind the last token they repeat it.
  template <int kHeads>
  HWY_INLINE void Scores(int h0, int t) {
    const FloatsTag d;
    const Bf16* rows[kTokensAtOnce];
    for (int i = 0; i < kTokensAtOnce; ++i) {
      rows[i] = block_.k + std::min(t + i, block_.tokens - 1) * kHeadDim;
      if (h0 == 0 && t + i < next_.tokens) {
        for (int c = 0; c < kHeadDim; c += 32) {
          __builtin_prefetch(next_.k + (t + i) * kHeadDim + c, 0, 2);
          __builtin_prefetch(next_.v + (t + i) * kHeadDim + c, 0, 2);
        }
      }
    }
    Floats sums[kHeads][kTokensAtOnce];
    for (auto& head : sums) {
      for (auto& sum : head) sum = hn::Zero(d);
    }
    for (int pair = 0; pair < kPairs; ++pair) {
      Floats even[kTokensAtOnce], odd[kTokensAtOnce];
      for (int i = 0; i < kTokensAtOnce; ++i) LoadPair(rows[i], pair, &even[i], &odd[i]);
      for (int h = 0; h < kHeads; ++h) {
        const Floats q_even = hn::Load(d, q_[h0 + h] + 2 * pair * kLanes);
        const Floats q_odd = hn::Load(d, q_[h0 + h] + (2 * pair + 1) * kLanes);
        for (int i = 0; i < kTokensAtOnce; ++i)
          sums[h][i] = hn::MulAdd(odd[i], q_odd, hn::MulAdd(even[i], q_even, sums[h][i]));
      }
    }
    for (int h = 0; h < kHeads; ++h)
      StoreLaneSums(sums[h][0], sums[h][1], sums[h][2], sums[h][3], scores_[h] + t);
  }

  // Scores become weights, in place.
  template <int kHeads>
  HWY_INLINE void Softmax(int h0, SoftmaxState* state) {
    const FloatsTag d;
    const int tokens = (block_.tokens + kLanes - 1) / kLanes * kLanes;
    for (int h = 0; h < kHeads; ++h) {
      std::fill(scores_[h] + block_.tokens, scores_[h] + tokens, -INFINITY);
      Floats max = hn::Load(d, scores_[h]);
      for (int t = kLanes; t < tokens; t += kLanes) max = hn::Max(max, hn::Load(d, scores_[h] + t));
      state->RaiseMax(h0 + h, hn::GetLane(hn::MaxOfLanes(d, max)), kHeadDim);
      max = hn::Set(d, state->max[h0 + h]);
      Floats sums = hn::Load(d, state->sums[h0 + h]);
      for (int t = 0; t < tokens; t += kLanes) {
        const Floats weight = Exp2<4>(d, hn::Sub(hn::Load(d, scores_[h] + t), max));
        sums = hn::Add(sums, weight);
        hn::Store(weight, d, scores_[h] + t);
      }
      hn::Store(sums, d, state->sums[h0 + h]);
    }
  }

  // The channels of two pairs of vectors, over all tokens.
  template <int kHeads>
  HWY_INLINE void Values(int h0, int pair, SoftmaxState* state) {
    const FloatsTag d;
    Floats sums[kHeads][2 * kPairsAtOnce];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < 2 * kPairsAtOnce; ++i)
        sums[h][i] = hn::Load(d, state->out[h0 + h] + (2 * pair + i) * kLanes);
    }
    for (int t = 0; t < block_.tokens; ++t) {
      Floats v[2 * kPairsAtOnce];
      for (int i = 0; i < kPairsAtOnce; ++i)
        LoadPair(block_.v + t * kHeadDim, pair + i, &v[2 * i], &v[2 * i + 1]);
      for (int h = 0; h < kHeads; ++h) {
        const Floats weight = hn::Set(d, scores_[h][t]);
        for (int i = 0; i < 2 * kPairsAtOnce; ++i)
          sums[h][i] = hn::MulAdd(v[i], weight, sums[h][i]);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < 2 * kPairsAtOnce; ++i)
        hn::Store(sums[h][i], d, state->out[h0 + h] + (2 * pair + i) * kLanes);
    }
  }

  const int group_;
  Block block_ = {}, next_ = {};  // next_ without tokens: none
  alignas(64) float q_[kMaxGroup][kHeadDim];
  alignas(64) float scores_[4][kPageTokens];
};

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
#endif  // HWY_SCALAR
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
