// Paged KV caches and queries for the tests of paged attention, on the CPU and on a GPU.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/paged_attention/op.h"
#include "kernels/q2_encode/op.h"
#include "kernels/q2_encode/shaped.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {

struct Sequence {
  int pages, bf16_blocks, last_tokens;
};

// What pages hold besides normally distributed rows.
enum class Content {
  kNormal,
  kScales,          // rows of very different size
  kEqual,           // all rows of a kv head the same
  kConstant,        // rows of one value: scale 0
  kDominant,        // V all alike but for one token, which has nearly all the weight
  kDominantLargeV,  // the same, and V of that token is much larger
};

struct Case {
  const char* name;
  int head_dim, num_kv_heads, group;
  std::vector<Sequence> sequences;
  float q_sigma = 1;
  Content content = Content::kNormal;
  bool offsets = true;  // pages have offset planes
};

// Pools with strides larger than a block, ids in random order, everything unused poisoned.
class Cache {
 public:
  Cache(const Case& c, uint32_t seed)
      : case_(c), random_(seed), shape_{1, c.num_kv_heads, c.head_dim, c.offsets} {
    int pages = 0, blocks = 0;
    page_begin_ = {0};
    bf16_begin_ = {0};
    for (const Sequence& s : c.sequences) {
      page_begin_.push_back(pages += s.pages);
      bf16_begin_.push_back(blocks += s.bf16_blocks);
      last_tokens_.push_back(s.last_tokens);
    }
    page_stride_ = static_cast<int64_t>(shape_.PageLayerBytes()) + 640;
    bf16_stride_ = static_cast<int64_t>(shape_.Bf16LayerBytes()) + 128;
    page_pool_.assign((pages + 2) * page_stride_, 0xff);
    bf16_pool_.assign((blocks + 2) * bf16_stride_, 0xff);  // NaN
    page_ids_ = RandomIds(pages);
    bf16_ids_ = RandomIds(blocks);
    q_ = random_.Floats(c.sequences.size() * Heads() * c.head_dim, c.q_sigma);
    equal_row_ = random_.Bf16s(c.head_dim);
    for (size_t i = 0; i < page_ids_.size(); ++i)
      FillPage(page_pool_.data() + page_ids_[i] * page_stride_, i == 0);
    for (size_t s = 0; s < c.sequences.size(); ++s) {
      for (int b = bf16_begin_[s]; b < bf16_begin_[s + 1]; ++b) {
        FillBf16(bf16_pool_.data() + bf16_ids_[b] * bf16_stride_,
                 b + 1 == bf16_begin_[s + 1] ? last_tokens_[s] : 64);
      }
    }
  }

  const std::vector<uint8_t>& page_pool() const { return page_pool_; }
  const std::vector<uint8_t>& bf16_pool() const { return bf16_pool_; }

  int Heads() const { return case_.num_kv_heads * case_.group; }

  PagedAttentionArgs Args(std::vector<float>* out, std::vector<float>* lse) const {
    *out = Poisoned(q_.size());
    PagedAttentionArgs args;
    args.head_dim = case_.head_dim;
    args.num_kv_heads = case_.num_kv_heads;
    args.group = case_.group;
    args.scale = 1 / std::sqrt(static_cast<float>(case_.head_dim));
    args.num_seqs = static_cast<int>(case_.sequences.size());
    args.q = q_.data();
    args.out = out->data();
    if (lse != nullptr) {
      *lse = Poisoned(args.num_seqs * Heads());
      args.lse = lse->data();
    }
    args.page_pool = page_pool_.data();
    args.page_stride = page_stride_;
    args.offsets = case_.offsets;
    args.page_ids = page_ids_.data();
    args.page_begin = page_begin_.data();
    args.bf16_pool = bf16_pool_.data();
    args.bf16_stride = bf16_stride_;
    args.bf16_ids = bf16_ids_.data();
    args.bf16_begin = bf16_begin_.data();
    args.last_tokens = last_tokens_.data();
    return args;
  }

  // Plain two-pass softmax over the rows as the codec's decoder gives them; shares nothing with the
  // kernels under test.
  void Naive(std::vector<float>* out, std::vector<float>* lse) const {
    const int d = case_.head_dim, seqs = static_cast<int>(case_.sequences.size());
    *out = Poisoned(q_.size());
    *lse = Poisoned(seqs * Heads());
    for (int s = 0; s < seqs; ++s) {
      for (int h = 0; h < Heads(); ++h) {
        std::vector<float> k, v;
        Rows(s, h / case_.group, Side::kKey, &k);
        Rows(s, h / case_.group, Side::kValue, &v);
        const float* q = q_.data() + (s * Heads() + h) * d;
        std::vector<double> scores;
        for (size_t t = 0; t < k.size() / d; ++t) {
          scores.push_back(std::inner_product(q, q + d, k.begin() + t * d, 0.0) / std::sqrt(d));
        }
        const double max = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (double& x : scores) sum += x = std::exp(x - max);
        for (int c = 0; c < d; ++c) {
          double o = 0;
          for (size_t t = 0; t < scores.size(); ++t) o += scores[t] * v[t * d + c];
          (*out)[(s * Heads() + h) * d + c] = static_cast<float>(o / sum);
        }
        (*lse)[s * Heads() + h] = static_cast<float>(max + std::log(sum));
      }
    }
  }

 private:
  std::vector<int32_t> RandomIds(int n) {
    std::vector<int32_t> ids(n + 2);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_.rng());
    ids.resize(n);
    return ids;
  }
  void FillPage(uint8_t* page, bool first) {
    std::vector<Bf16> rows = random_.Bf16s(2 * shape_.Bf16SideElements());
    rows[random_.Int(0, static_cast<int>(rows.size()) - 1)] = ToBf16(60);  // an outlier
    const int d = case_.head_dim, keys = case_.num_kv_heads * 64;          // rows of one side
    for (int r = 0; r < 2 * keys; ++r) ChangeRow(r < keys, first && r % 64 == 37, &rows[r * d]);
    if (!case_.offsets) return FillCentred(rows, page);
    const float clips[2] = {0.96f, 0.92f};
    ASSERT_EQ(EncodeBlockLayer(Backend::kRef, shape_, rows.data(), clips, page, nullptr),
              KernelStatus::kOk);
  }
  // Levels about zero, rounded to the nearest: no metric.
  void FillCentred(const std::vector<Bf16>& rows, uint8_t* page) {
    const int d = case_.head_dim;
    const std::vector<float> none(d * d), ones(d, 1.0f);
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (int h = 0; h < case_.num_kv_heads; ++h) {
        ShapedArgs args;
        args.head_dim = d;
        args.side = side;
        args.rows = rows.data() + static_cast<int>(side) * shape_.Bf16SideElements() + h * 64 * d;
        args.row_stride = d;
        args.metric = {none.data(), none.data(), ones.data(), ones.data(), static_cast<float>(d)};
        args.sweeps = 0;
        args.symmetric = true;
        args.page_head = page + h * PageHeadBytes(d, false);
        ASSERT_EQ(EncodePageHeadShaped(Backend::kRef, args, nullptr), KernelStatus::kOk);
      }
    }
  }
  void ChangeRow(bool key, bool dominant, Bf16* row) {
    const int d = case_.head_dim;
    const auto scale = [&](float factor) {
      for (int c = 0; c < d; ++c) row[c] = ToBf16(ToFloat(row[c]) * factor);
    };
    switch (case_.content) {
      case Content::kNormal:
        return;
      case Content::kScales:
        return scale(std::pow(10.0f, static_cast<float>(random_.Int(-30, key ? 3 : 20)) / 10));
      case Content::kEqual:
        std::copy_n(equal_row_.data(), d, row);
        return;
      case Content::kConstant:
        std::fill_n(row, d, row[0]);
        return;
      case Content::kDominant:
      case Content::kDominantLargeV:
        if (key && dominant) {  // along the first query: its score is some 11.5 above the others
          const double norm = std::inner_product(q_.begin(), q_.begin() + d, q_.begin(), 0.0);
          for (int c = 0; c < d; ++c)
            row[c] = ToBf16(static_cast<float>(q_[c] * 11.5 * std::sqrt(d) / norm));
        } else if (key) {
          scale(0.02f);
        } else if (!dominant) {
          std::copy_n(equal_row_.data(), d, row);
        } else if (case_.content == Content::kDominantLargeV) {
          scale(30);
        }
    }
  }
  void FillBf16(uint8_t* block, int tokens) {
    for (int i = 0; i < 2 * case_.num_kv_heads; ++i) {
      const std::vector<Bf16> rows = random_.Bf16s(tokens * case_.head_dim);
      std::memcpy(block + size_t{2} * i * 64 * case_.head_dim, rows.data(), 2 * rows.size());
    }
  }
  void Rows(int s, int head, Side side, std::vector<float>* rows) const {
    const int d = case_.head_dim;
    for (int p = page_begin_[s]; p < page_begin_[s + 1]; ++p) {
      std::vector<float> page(64 * d);
      const uint8_t* at =
          page_pool_.data() + page_ids_[p] * page_stride_ + head * PageHeadBytes(d, case_.offsets);
      DecodePageHead(Backend::kRef, d, side, at, page.data(), case_.offsets);
      rows->insert(rows->end(), page.begin(), page.end());
    }
    for (int b = bf16_begin_[s]; b < bf16_begin_[s + 1]; ++b) {
      const auto* block =
          reinterpret_cast<const Bf16*>(bf16_pool_.data() + bf16_ids_[b] * bf16_stride_);
      const Bf16* at = block + (static_cast<int>(side) * case_.num_kv_heads + head) * 64 * d;
      const int tokens = b + 1 == bf16_begin_[s + 1] ? last_tokens_[s] : 64;
      for (int i = 0; i < tokens * d; ++i) rows->push_back(ToFloat(at[i]));
    }
  }

  const Case& case_;
  RandomData random_;
  KvShape shape_;
  int64_t page_stride_, bf16_stride_;
  std::vector<uint8_t> page_pool_, bf16_pool_;
  std::vector<int32_t> page_ids_, page_begin_, bf16_ids_, bf16_begin_, last_tokens_;
  std::vector<float> q_;
  std::vector<Bf16> equal_row_;
};

inline std::vector<Case> Cases() {
  std::vector<Case> cases = {
      {"one token", 128, 1, 1, {{0, 1, 1}}},
      {"one token, a group", 64, 2, 7, {{0, 1, 1}}},
      {"no pages", 128, 2, 4, {{0, 2, 17}}},
      {"no bf16 blocks", 128, 2, 4, {{3, 0, 64}}},
      {"sink, pages, window", 128, 2, 4, {{6, 6, 40}}},
      {"many pages", 128, 1, 8, {{70, 6, 64}}},
      {"ragged", 128, 2, 2, {{0, 1, 1}, {5, 6, 63}, {1, 2, 64}, {17, 6, 2}}},
      {"ragged 64", 64, 3, 3, {{0, 1, 5}, {9, 5, 1}, {2, 6, 64}}},
      {"eight kv heads", 128, 8, 1, {{4, 5, 9}}},
      {"eight kv heads, group 4", 64, 8, 4, {{4, 5, 9}, {1, 1, 1}}},
      {"sharp softmax", 128, 2, 4, {{20, 6, 30}}, 12},
      {"flat softmax", 128, 2, 4, {{20, 6, 30}}, 0},
      {"no sequences", 128, 2, 4, {}},
      {"large scores", 128, 2, 4, {{30, 1, 1}, {5, 0, 64}}, 100},
      {"large scores 64", 64, 2, 5, {{30, 1, 1}, {5, 0, 64}}, 100},
      {"rows of different size", 128, 2, 4, {{20, 1, 30}, {1, 0, 64}}, 1, Content::kScales},
      {"rows of different size 64", 64, 2, 3, {{20, 1, 30}, {1, 0, 64}}, 1, Content::kScales},
      {"rows of different size, sharp", 128, 2, 4, {{20, 0, 64}}, 10, Content::kScales},
      {"equal rows", 128, 2, 4, {{9, 0, 64}, {4, 2, 20}}, 1, Content::kEqual},
      {"constant rows", 128, 2, 4, {{9, 0, 64}, {4, 2, 20}}, 1, Content::kConstant},
      {"constant rows, sharp", 64, 2, 4, {{9, 0, 64}}, 20, Content::kConstant},
      {"dominating token", 128, 1, 4, {{20, 0, 64}}, 1, Content::kDominant},
      {"dominating token 64", 64, 1, 2, {{60, 1, 64}}, 1, Content::kDominant},
      {"dominating token, large", 128, 1, 4, {{20, 0, 64}}, 1, Content::kDominantLargeV},
  };
  for (int group = 1; group <= 16; ++group)
    cases.push_back({"groups", group % 2 ? 128 : 64, 1, group, {{3, 2, 4 * group}}});
  return cases;
}

// Cases(), and pages without offset planes, which the CPU has.
inline std::vector<Case> AllCases() {
  std::vector<Case> cases = Cases();
  for (const Case& c : Cases()) {
    if (c.content == Content::kConstant) continue;  // a constant row has no level about zero
    cases.push_back(c);
    cases.back().offsets = false;
  }
  return cases;
}

}  // namespace oscarkv::kernels
