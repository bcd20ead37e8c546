// Attention over 2-bit pages in integers, compiled once per instruction set.
//
// q is split into signed 8-bit digits and the products of the weights with the scales of V, tile by
// tile, into two unsigned ones: dot products with codes are then exact int32 sums of byte products
// and no code is ever converted. With q~ the rounded q: score = s <q~, codes> + o sum(q~), so that
// the rounding acts on q alone, whatever scale and offset are. In out = sum w~ codes + sum p o only
// w = p s is rounded; the rounding error is carried from token to token, so that the sums of w~
// stay right to some units of the last place even if single weights are smaller than one.
//
// Within a tile, tokens go in the order in which the codes have them, "row order": 16 tb + 2 g + r
// for token 16 tb + g + 8 r. Then a block of V's weights needs no permutation. Out has its own
// order too: see PageAttention::Channel.
#if defined(OSCARKV_KERNELS_PAGED_ATTENTION_PAGES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_PAGED_ATTENTION_PAGES_INL_H_
#undef OSCARKV_KERNELS_PAGED_ATTENTION_PAGES_INL_H_
#else
#define OSCARKV_KERNELS_PAGED_ATTENTION_PAGES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/layout.h"
#include "kernels/paged_attention/op.h"
#include "kernels/paged_attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace oscarkv::kernels {
namespace HWY_NAMESPACE {

// kOffsets: pages have offset planes; without them an offset is a multiple of the scale, and
// nothing behind LoadMeta knows the difference.
template <int kHeadDim, bool kOffsets>
class PageAttention {
 public:
  // `q` [group, head_dim]; `scale_log2` includes the change to base 2.
  PageAttention(const float* q, int group, float scale_log2) : group_(group) {
    for (int h = 0; h < group; ++h) SplitQuery(q + h * kHeadDim, h, scale_log2);
  }

  // Page-heads page(begin) .. page(end - 1).
  template <class Page>
  void Run(int begin, int end, const Page& page, SoftmaxState* state) {
    for (int tile = begin; tile < end; tile += kTilePages) {
      pages_ = std::min(kTilePages, end - tile);
      for (int i = 0; i < kTilePages; ++i) {
        page_[i] = i < pages_ ? page(tile + i) : nullptr;
        next_[i] = tile + kTilePages + i < end ? page(tile + kTilePages + i) : nullptr;
      }
      LoadMeta();
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

  // The channel at position i of SoftmaxState::out after Run.
  static int Channel(int i) {
    constexpr int kWords = kHeadDim / 32;  // of a slot
    const int p = i / kLanes % 4, word = i / (4 * kLanes) * kLanes + i % kLanes;
    return 64 * (word % kWords / 2) + 16 * p + 8 * (word % 2) + word / kWords;
  }

 private:
  static constexpr int kTilePages = 4;
  static constexpr int kTileTokens = kTilePages * kPageTokens;
  static constexpr int kDigits = 3;  // of q; two of them suffice for most tiles
  // A row is the slots of one j of a token block: as many bytes as head_dim.
  static constexpr int kRowVectors = kHeadDim / (4 * kLanes);
  // Two vectors of codes are multiplied at a time, so that a pattern of q is loaded once for both.
  static constexpr int kPairs = 4 * kRowVectors / 2;
  // Root mean square error of a score, a base-2 logarithm, above which a tile takes all
  // digits of q.
  static constexpr float kScoreTolerance = 2e-4f;
  // Adding it to a float in [0, 2^22) leaves the nearest integer in the low bits.
  static constexpr float kRound = 12582912.0f;
  static constexpr float kMaxWeight = 65534;  // and 1/2 may be carried

  // q~ = q / unit rounded, as balanced digits to base 256. The unit is the smallest for which the
  // leading digit fits int8 and sum |q~| * 3, the bound of all partial sums, fits int32.
  void SplitQuery(const float* q, int h, float scale_log2) {
    float max = 0, sum_abs = 0;
    for (int c = 0; c < kHeadDim; ++c) {
      max = std::max(max, std::abs(q[c]));
      sum_abs += std::abs(q[c]);
    }
    const float unit = std::max({max / 8.355e6f, sum_abs / 7.155e8f, 1e-37f});
    int64_t sums[2] = {};  // of the rounded q with 2 and 3 digits, in units of their last digit
    for (int c = 0; c < kHeadDim; ++c) {
      int32_t rest = static_cast<int32_t>(std::lrint(q[c] / unit));
      sums[1] += rest;
      const CodePosition at = KeyPosition(kHeadDim, 0, c);
      const int p = at.bit / 2 % 4, j = c >> 1 & 3;
      for (int i = kDigits - 1; i >= 0; --i) {
        const int32_t digit = i == 0 ? rest : static_cast<int8_t>(rest & 0xff);
        rest = (rest - digit) / 256;
        if (i == kDigits - 1) sums[0] += rest;
        // Every word that holds channel c: of both tokens r, for head_dim 64 of two slots.
        int8_t* pattern = digits_[h / 4][j][p][i][h % 4];
        const int byte = at.bit / 8, word = kHeadDim == 128 ? 2 * (c / 64) : 0;
        for (int w = word; w < (kHeadDim == 128 ? word + 2 : 4); ++w)
          pattern[4 * w + byte] = static_cast<int8_t>(digit);
      }
    }
    for (int all = 0; all < 2; ++all) {
      unit_[all][h] = unit * scale_log2 * (all ? 1.0f : 256.0f);
      sum_[all][h] = unit_[all][h] * static_cast<float>(sums[all]);
    }
    // A rounding error is uniform: 1 / sqrt(12) units.
    key_error_[h] = 0.289f * std::abs(unit_[0][h]) * std::sqrt(static_cast<float>(kHeadDim));
  }

  // Scales and offsets of the tile in row order, and the largest magnitude of a key.
  void LoadMeta() {
    const FloatsTag d;
    Floats largest = hn::Zero(d);
    for (int i = 0; i < pages_; ++i) {
      const uint8_t* planes = page_[i] + MetaOffset(kHeadDim);
      for (int plane = 0; plane < kMetaPlanes; plane += kOffsets ? 1 : 2) {
        LoadPlane(planes + 2 * kPageTokens * (kOffsets ? plane : plane / 2),
                  meta_[plane] + i * kPageTokens);
      }
      for (int t = i * kPageTokens; !kOffsets && t < (i + 1) * kPageTokens; t += kLanes) {
        const Floats centred = hn::Set(d, kCentredOffset);
        hn::Store(hn::Mul(hn::Load(d, meta_[0] + t), centred), d, meta_[1] + t);
        hn::Store(hn::Mul(hn::Load(d, meta_[2] + t), centred), d, meta_[3] + t);
      }
      for (int t = i * kPageTokens; t < (i + 1) * kPageTokens; t += kLanes) {
        const Floats low = hn::Load(d, meta_[1] + t);
        const Floats high = hn::MulAdd(hn::Load(d, meta_[0] + t), hn::Set(d, 3.0f), low);
        largest = hn::Max(largest, hn::Max(hn::Abs(low), hn::Abs(high)));
      }
    }
    largest_key_ = hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  // From [g][tb][r] to [tb][g][r].
  static HWY_INLINE void LoadPlane(const uint8_t* plane, float* to) {
    const hn::CappedTag<uint32_t, 8> d32;  // pairs of fp16
    const int lanes = static_cast<int>(hn::Lanes(d32));
    alignas(64) uint32_t pairs[kPageTokens / 2];
    for (int g = 0; g < 8; g += lanes) {
      hn::Vec<decltype(d32)> tb0, tb1, tb2, tb3;
      hn::LoadInterleaved4(d32, reinterpret_cast<const uint32_t*>(plane) + 4 * g, tb0, tb1, tb2,
                           tb3);
      hn::Store(tb0, d32, pairs + g);
      hn::Store(tb1, d32, pairs + 8 + g);
      hn::Store(tb2, d32, pairs + 16 + g);
      hn::Store(tb3, d32, pairs + 24 + g);
    }
    const FloatsTag d;
    const hn::Rebind<hwy::float16_t, FloatsTag> d16;
    const auto* halves = reinterpret_cast<const hwy::float16_t*>(pairs);
    for (int t = 0; t < kPageTokens; t += kLanes)
      hn::Store(hn::PromoteTo(d, hn::Load(d16, halves + t)), d, to + t);
  }

  template <int kHeads>
  HWY_INLINE void Attend(int h0, SoftmaxState* state) {
    float error = 0;
    for (int h = 0; h < kHeads; ++h) {
      hn::Store(hn::Set(FloatsTag(), -INFINITY), FloatsTag(), tile_max_[h]);
      error = std::max(error, key_error_[h0 + h] * largest_key_);
    }
    for (int page = 0; page < pages_; ++page) {
      if (error > kScoreTolerance) {
        Scores<kHeads, kDigits>(h0, page);
      } else {
        Scores<kHeads, 2>(h0, page);
      }
    }
    Softmax<kHeads>(h0, state);
    RoundWeights<kHeads>();
    for (int v = 0; v < kRowVectors; ++v) {
      Values<kHeads, 0>(h0, v, state);
      if constexpr (kCodesAtOnce<kHeads> == 2) Values<kHeads, 2>(h0, v, state);
    }
  }

  // Exchanges 16-byte blocks: block i comes from i ^ x.
  static HWY_INLINE Bytes ExchangeBlocks(Bytes bytes, int x) {
    const BytesTag d;
    if constexpr (kLanes == 16) {
      if (x == 1) return hn::ReverseBlocks(d, hn::ConcatLowerUpper(d, bytes, bytes));
      if (x == 2) return hn::ConcatLowerUpper(d, bytes, bytes);
      if (x == 3) return hn::ReverseBlocks(d, bytes);
    } else if constexpr (kLanes == 8) {
      if (x == 1) return hn::ConcatLowerUpper(d, bytes, bytes);
    }
    return bytes;
  }

  // Vector v of row j of a token block, with g ascending: undoes the exchange of slots.
  static HWY_INLINE Bytes LoadRow(const uint8_t* block, int j, int v) {
    constexpr int kBlocks = kLanes / 4;  // 16-byte blocks of a vector
    const int x = j * kHeadDim / 64;
    const int at = j * kHeadDim + (v ^ (x / kBlocks)) * 4 * kLanes;
    return ExchangeBlocks(hn::LoadU(BytesTag(), block + at), x % kBlocks);
  }
  static HWY_INLINE Bytes ShiftCodes(Bytes codes) {
    const hn::Repartition<uint16_t, BytesTag> d16;
    return hn::BitCast(BytesTag(), hn::ShiftRight<2>(hn::BitCast(d16, codes)));
  }

  // Row j of two vectors times the digits of q.
  template <int kHeads, int kUsed>
  HWY_INLINE void ScoreRow(int h0, const uint8_t* const* blocks, const int* vectors, int j,
                           Ints (&sums)[kHeads][kUsed][2]) {
    const BytesTag d;
    Bytes codes[2] = {LoadRow(blocks[0], j, vectors[0]), LoadRow(blocks[1], j, vectors[1])};
    const auto& patterns = digits_[h0 / 4][j];
    for (int p = 0; p < 4; ++p) {
      const Bytes code0 = hn::And(codes[0], hn::Set(d, 3));
      const Bytes code1 = hn::And(codes[1], hn::Set(d, 3));
      for (int i = 0; i < kUsed; ++i) {
        for (int h = 0; h < kHeads; ++h) {
          const auto* pattern = reinterpret_cast<const uint8_t*>(patterns[p][i][h0 % 4 + h]);
          const Bytes digit = hn::LoadDup128(d, pattern);
          sums[h][i][0] = DotBytes(sums[h][i][0], code0, digit);
          sums[h][i][1] = DotBytes(sums[h][i][1], code1, digit);
        }
      }
      codes[0] = ShiftCodes(codes[0]);
      codes[1] = ShiftCodes(codes[1]);
    }
  }

  // Scores of one page into scores_.
  template <int kHeads, int kUsed>
  HWY_NOINLINE void Scores(int h0, int page) {
    const IntsTag d32;
    for (int pair = 0; pair < kPairs; ++pair) {
      if (h0 == 0 && next_[page] != nullptr) PrefetchPage(next_[page], pair);
      const uint8_t* blocks[2];
      int vectors[2];
      for (int r = 0; r < 2; ++r) {
        blocks[r] = page_[page] + (2 * pair + r) / kRowVectors * 4 * kHeadDim;
        vectors[r] = (2 * pair + r) % kRowVectors;
      }
      Ints sums[kHeads][kUsed][2];
      for (auto& head : sums) {
        for (auto& digit : head) digit[0] = digit[1] = hn::Zero(d32);
      }
      ScoreRow<kHeads, kUsed>(h0, blocks, vectors, 0, sums);
      ScoreRow<kHeads, kUsed>(h0, blocks, vectors, 1, sums);
      ScoreRow<kHeads, kUsed>(h0, blocks, vectors, 2, sums);
      ScoreRow<kHeads, kUsed>(h0, blocks, vectors, 3, sums);
      for (int h = 0; h < kHeads; ++h) {
        Ints dots[2] = {sums[h][0][0], sums[h][0][1]};
        for (int i = 1; i < kUsed; ++i) {
          dots[0] = hn::Add(hn::ShiftLeft<8>(dots[0]), sums[h][i][0]);
          dots[1] = hn::Add(hn::ShiftLeft<8>(dots[1]), sums[h][i][1]);
        }
        const int t = page * kPageTokens + pair * (kHeadDim == 128 ? 1 : 2) * kLanes;
        if constexpr (kHeadDim == 128) {  // words (ch, r): the two halves of the channels
          const hn::Repartition<uint64_t, IntsTag> d64;
          const auto low = hn::BitCast(d64, dots[0]), high = hn::BitCast(d64, dots[1]);
          const auto even = hn::BitCast(d32, hn::ConcatEven(d64, high, low));
          const auto odd = hn::BitCast(d32, hn::ConcatOdd(d64, high, low));
          StoreScore(h0, h, kUsed == kDigits, t, hn::Add(even, odd));
        } else {
          StoreScore(h0, h, kUsed == kDigits, t, dots[0]);
          StoreScore(h0, h, kUsed == kDigits, t + kLanes, dots[1]);
        }
      }
    }
  }

  HWY_INLINE void StoreScore(int h0, int h, bool all_digits, int t, Ints dots) {
    const FloatsTag d;
    const Floats by_scale =
        hn::Mul(hn::Load(d, meta_[0] + t), hn::Set(d, unit_[all_digits][h0 + h]));
    const Floats by_offset =
        hn::Mul(hn::Load(d, meta_[1] + t), hn::Set(d, sum_[all_digits][h0 + h]));
    const Floats score = hn::MulAdd(hn::ConvertTo(d, dots), by_scale, by_offset);
    hn::Store(score, d, scores_[h] + t);
    hn::Store(hn::Max(hn::Load(d, tile_max_[h]), score), d, tile_max_[h]);
  }

  // A share of the page-head to L2: L1 holds the current tile.
  static HWY_INLINE void PrefetchPage(const uint8_t* page, int share) {
    constexpr int kLines = static_cast<int>(PageHeadBytes(kHeadDim, kOffsets) / 64);
    for (int i = share * kLines / kPairs; i < (share + 1) * kLines / kPairs; ++i)
      __builtin_prefetch(page + 64 * i, 0, 2);
  }

  // Scores become weight * V scale, in place; their maximum into tile_max_.
  template <int kHeads>
  HWY_NOINLINE void Softmax(int h0, SoftmaxState* state) {
    const FloatsTag d;
    Floats max[kHeads], sums[kHeads], offsets[kHeads], largest[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      const Floats tile_max = hn::MaxOfLanes(d, hn::Load(d, tile_max_[h]));
      state->RaiseMax(h0 + h, hn::GetLane(tile_max), kHeadDim);
      max[h] = hn::Set(d, state->max[h0 + h]);
      sums[h] = hn::Load(d, state->sums[h0 + h]);
      offsets[h] = hn::Load(d, state->offsets[h0 + h]);
      largest[h] = hn::Zero(d);
    }
    for (int t = 0; t < pages_ * kPageTokens; t += kLanes) {
      const Floats scale = hn::Load(d, meta_[2] + t), offset = hn::Load(d, meta_[3] + t);
      for (int h = 0; h < kHeads; ++h) {
        const Floats weight = Exp2<4>(d, hn::Sub(hn::Load(d, scores_[h] + t), max[h]));
        sums[h] = hn::Add(sums[h], weight);
        offsets[h] = hn::MulAdd(weight, offset, offsets[h]);
        const Floats scaled = hn::Mul(weight, scale);
        largest[h] = hn::Max(largest[h], scaled);
        hn::Store(scaled, d, scores_[h] + t);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      hn::Store(sums[h], d, state->sums[h0 + h]);
      hn::Store(offsets[h], d, state->offsets[h0 + h]);
      hn::Store(hn::MaxOfLanes(d, largest[h]), d, tile_max_[h]);
    }
  }

  // weight * V scale, relative to the tile's largest, to 16 bits.
  template <int kHeads>
  HWY_NOINLINE void RoundWeights() {
    const FloatsTag d;
    const hn::Repartition<uint32_t, FloatsTag> d32;
    const hn::Rebind<uint8_t, FloatsTag> d8;
    const Floats round = hn::Set(d, kRound);
    Floats inverse[kHeads], carry[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      const float largest = tile_max_[h][0];
      // Less is nothing beside the sum of the weights, which is at least 1 in the end.
      const bool some = largest > 1e-30f;
      weight_unit_[h] = some ? largest / kMaxWeight : 0;
      inverse[h] = hn::Set(d, some ? kMaxWeight / largest : 0);
      carry[h] = hn::Zero(d);
    }
    for (int t = 0; t < pages_ * kPageTokens; t += kLanes) {
      for (int h = 0; h < kHeads; ++h) {
        const Floats level = hn::MulAdd(hn::Load(d, scores_[h] + t), inverse[h], carry[h]);
        const Floats shifted = hn::Add(level, round);
        carry[h] = hn::Sub(level, hn::Sub(shifted, round));
        const auto bits = hn::BitCast(d32, shifted);
        const auto mask = hn::Set(d32, 0xff);
        const auto high = hn::And(hn::ShiftRight<8>(bits), mask);
        hn::StoreU(hn::U8FromU32(high), d8, weights_[0][h] + t);
        hn::StoreU(hn::U8FromU32(hn::And(bits, mask)), d8, weights_[1][h] + t);
      }
    }
  }

  template <int kHeads>
  static constexpr int kCodesAtOnce = kHeads * 4 <= (kManyRegisters ? 8 : 4) ? 4 : 2;

  // Row j of a token block of V times the weights of its tokens.
  template <int kHeads, int kCodes>
  HWY_INLINE void ValueRow(Bytes codes, int t, Ints (&sums)[kCodes][kHeads][2]) {
    const BytesTag d;
    const IntsTag d32;
    Bytes code[kCodes];
    for (int p = 0; p < kCodes; ++p) {
      code[p] = hn::And(codes, hn::Set(d, 3));
      if (p + 1 < kCodes) codes = ShiftCodes(codes);
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < 2; ++i) {
        int32_t four;
        std::memcpy(&four, weights_[i][h] + t, sizeof(four));
        const Bytes weights = hn::BitCast(d, hn::Set(d32, four));
        for (int p = 0; p < kCodes; ++p) sums[p][h][i] = DotBytes(sums[p][h][i], weights, code[p]);
      }
    }
  }

  // The channels of vector v with code positions from kFirst, over the whole tile.
  template <int kHeads, int kFirst>
  HWY_NOINLINE void Values(int h0, int v, SoftmaxState* state) {
    constexpr int kCodes = kCodesAtOnce<kHeads>;
    const FloatsTag d;
    const IntsTag d32;
    const hn::Repartition<uint16_t, BytesTag> d16;
    Ints sums[kCodes][kHeads][2];
    for (auto& code : sums) {
      for (auto& head : code) head[0] = head[1] = hn::Zero(d32);
    }
    for (int t = 0; t < pages_ * kPageTokens; t += 16) {
      const uint8_t* block =
          page_[t / kPageTokens] + CodesBytes(kHeadDim) + t % kPageTokens / 16 * 4 * kHeadDim;
      const auto row = [&](int j) HWY_ATTR {
        const Bytes codes = LoadRow(block, j, v);
        return hn::BitCast(BytesTag(), hn::ShiftRight<2 * kFirst>(hn::BitCast(d16, codes)));
      };
      ValueRow<kHeads, kCodes>(row(0), t, sums);
      ValueRow<kHeads, kCodes>(row(1), t + 4, sums);
      ValueRow<kHeads, kCodes>(row(2), t + 8, sums);
      ValueRow<kHeads, kCodes>(row(3), t + 12, sums);
    }
    for (int p = 0; p < kCodes; ++p) {
      for (int h = 0; h < kHeads; ++h) {
        const Ints dots = hn::Add(hn::ShiftLeft<8>(sums[p][h][0]), sums[p][h][1]);
        float* out = state->out[h0 + h] + (4 * v + kFirst + p) * kLanes;
        const Floats unit = hn::Set(d, weight_unit_[h]);
        hn::Store(hn::MulAdd(hn::ConvertTo(d, dots), unit, hn::Load(d, out)), d, out);
      }
    }
  }

  const int group_;
  int pages_ = 0;  // of the tile
  const uint8_t* page_[kTilePages];
  const uint8_t* next_[kTilePages];  // of the next tile, or null
  float largest_key_ = 0;
  // Per head of the group, with two digits and with all: the score per unit of a dot product, and
  // per unit of offset.
  float unit_[2][kMaxGroup], sum_[2][kMaxGroup];
  float key_error_[kMaxGroup];  // of a score with two digits, per magnitude of a key
  float weight_unit_[4];
  // The digits of q in the places of the codes that they meet: [head / 4][j][p][digit][head % 4].
  alignas(64) int8_t digits_[kMaxGroup / 4][4][4][kDigits][4][16];
  alignas(64) float meta_[kMetaPlanes][kTileTokens];  // planes in row order
  // Of the heads of a register block.
  alignas(64) float tile_max_[4][kLanes];
  alignas(64) float scores_[4][kTileTokens];
  alignas(64) uint8_t weights_[2][4][kTileTokens];
};

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv::kernels
#endif  // HWY_SCALAR
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
