#include "kernels/prefill_attention/op.h"

#include <gtest/gtest.h>

#include "kernels/prefill_attention/softmax.h"
#include "kernels/thread_pool.h"
#include "tests/unit/kernels/random_data.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

struct Case {
  int head_dim, num_kv_heads, group, start, num_queries;
  KvType type;
  bool history;
  int window_blocks = 4;
};

// All inputs of one call. The rows behind the last position hold NaN: nothing may read them.
struct Inputs {
  Inputs(const Case& c, uint32_t seed, int spare_rows = 3) : test_case(c) {
    RandomData random(seed);
    positions = c.start + c.num_queries;
    head_stride = int64_t{positions + spare_rows} * c.head_dim;
    q = random.Floats(size_t{1} * c.num_queries * c.num_kv_heads * c.group * c.head_dim, 2.0f);
    for (auto* rows : {&k, &v, &k_history, &v_history}) {
      *rows = random.Floats(c.num_kv_heads * head_stride);
      for (int h = 0; h < c.num_kv_heads; ++h) {
        std::fill((*rows).begin() + h * head_stride + int64_t{positions} * c.head_dim,
                  (*rows).begin() + (h + 1) * head_stride, std::numeric_limits<float>::quiet_NaN());
      }
    }
    // The history differs enough from the exact rows that a block from the wrong copy shows.
    for (float& x : k_history) x *= 1.5f;
    if (c.type == KvType::kBf16) {
      for (const auto* rows : {&k, &v, &k_history, &v_history}) {
        std::vector<Bf16> copy(rows->size());
        for (size_t i = 0; i < copy.size(); ++i) copy[i] = ToBf16((*rows)[i]);
        bf16.push_back(std::move(copy));
      }
      for (float& x : q) x = ToFloat(ToBf16(x));
    }
  }

  std::vector<float> Run(Backend backend, Executor* executor, int first = 0, int count = -1) const {
    const Case& c = test_case;
    const int64_t width = int64_t{c.num_kv_heads} * c.group * c.head_dim;
    if (count < 0) count = c.num_queries;
    std::vector<float> out = Poisoned(count * width);
    PrefillAttentionArgs args;
    args.head_dim = c.head_dim;
    args.num_kv_heads = c.num_kv_heads;
    args.group = c.group;
    args.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    args.start = c.start + first;
    args.num_queries = count;
    args.type = c.type;
    args.q = q.data() + first * width;
    args.out = out.data();
    const bool b = c.type == KvType::kBf16;
    args.k_exact = b ? static_cast<const void*>(bf16[0].data()) : k.data();
    args.v_exact = b ? static_cast<const void*>(bf16[1].data()) : v.data();
    if (c.history) {
      args.k_history = b ? static_cast<const void*>(bf16[2].data()) : k_history.data();
      args.v_history = b ? static_cast<const void*>(bf16[3].data()) : v_history.data();
    }
    args.head_stride = head_stride;
    args.window_blocks = c.window_blocks;
    EXPECT_EQ(PrefillAttention(backend, args, executor), KernelStatus::kOk);
    return out;
  }

  Case test_case;
  int positions;
  int64_t head_stride;
  std::vector<float> q, k, v, k_history, v_history;
  std::vector<std::vector<Bf16>> bf16;  // k, v, k_history, v_history
};

// fp32: scores near 20 carry some 1e-6 each. bf16: the weights are rounded to 8 bits (2^-9 each at
// most), which the sum over keys averages.
double Tolerance(KvType type) {
  return type == KvType::kFp32 ? 1e-5 : 4e-3;
}

class PrefillTest : public testing::TestWithParam<Case> {};

TEST_P(PrefillTest, CpuMatchesFloat64) {
  const Inputs inputs(GetParam(), 11);
  ThreadPool pool(2);
  const std::vector<float> expected = inputs.Run(Backend::kRef, &pool);
  const std::vector<float> actual = inputs.Run(Backend::kCpu, nullptr);
  EXPECT_LT(WorstRowError(actual, expected, GetParam().head_dim), Tolerance(GetParam().type));
  EXPECT_EQ(inputs.Run(Backend::kCpu, &pool), actual)
      << "the result depends on the number of threads";
}

constexpr KvType kB = KvType::kBf16, kF = KvType::kFp32;
INSTANTIATE_TEST_SUITE_P(
    Exact, PrefillTest,
    testing::Values(Case{128, 1, 1, 0, 1, kF, false}, Case{128, 1, 1, 0, 1, kB, false},
                    Case{128, 2, 4, 0, 63, kF, false}, Case{128, 2, 4, 0, 64, kB, false},
                    Case{128, 2, 4, 0, 65, kF, false}, Case{64, 8, 1, 0, 130, kB, false},
                    Case{64, 3, 2, 63, 2, kF, false}, Case{128, 1, 16, 64, 64, kB, false},
                    Case{128, 1, 3, 511, 2, kF, false}, Case{128, 1, 2, 512, 1, kF, false},
                    Case{128, 1, 2, 500, 200, kF, false}, Case{128, 2, 2, 1000, 90, kB, false},
                    Case{64, 1, 5, 575, 130, kB, false}, Case{128, 1, 1, 1023, 3, kF, false},
                    Case{32, 1, 2, 70, 40, kF, false}));
INSTANTIATE_TEST_SUITE_P(
    Canonical, PrefillTest,
    testing::Values(Case{128, 1, 2, 0, 64, kF, true}, Case{128, 1, 2, 0, 448, kF, true},
                    Case{128, 2, 1, 300, 200, kF, true}, Case{128, 1, 2, 383, 2, kF, true},
                    Case{128, 1, 4, 384, 64, kB, true}, Case{64, 2, 2, 700, 150, kF, true},
                    Case{128, 1, 2, 760, 80, kF, true}, Case{128, 1, 2, 1279, 70, kB, true},
                    Case{128, 1, 1, 1300, 5, kF, true}, Case{128, 1, 2, 200, 400, kF, true, 0},
                    Case{128, 1, 2, 200, 400, kF, true, 1}, Case{64, 1, 2, 700, 70, kF, true, 9}));

// With `canonical` the KV of a token must not depend on how its prompt was cut into chunks: not in
// a single bit.
TEST(PrefillTest, ChunksDoNotChangeAnything) {
  for (const bool history : {false, true}) {
    for (const KvType type : {kB, kF}) {
      const Case c{128, 2, 4, 0, 700, type, history};
      const Inputs inputs(c, 5);
      const std::vector<float> whole = inputs.Run(Backend::kCpu, nullptr);
      for (const int chunk : {1, 37, 64, 256, 333}) {
        std::vector<float> cut;
        const int step = chunk == 1 ? 97 : chunk;  // a single query now and then
        for (int first = 0; first < c.num_queries; first += step) {
          const int count = std::min(chunk, c.num_queries - first);
          const std::vector<float> part = inputs.Run(Backend::kCpu, nullptr, first, count);
          const size_t width = whole.size() / c.num_queries;
          EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * width))
              << "chunk " << chunk << " at " << first << " history " << history;
        }
      }
    }
  }
}

TEST(PrefillTest, HugeScoresStayFinite) {
  Inputs inputs({128, 1, 2, 10, 80, kF, false}, 3);
  for (float& x : inputs.q) x *= 1e4f;
  const std::vector<float> out = inputs.Run(Backend::kCpu, nullptr);
  EXPECT_LT(WorstRowError(out, inputs.Run(Backend::kRef, nullptr), 128),
            0.02);  // fp32 scores near 1e5 carry 0.01
}

// One step after another against float64, on every instruction set and for every remainder.
TEST(SoftmaxTest, StepsMatchFloat64) {
  ForEachSimdTarget([] {
    for (const KvType type : {kB, kF}) {
      RandomData random(12);
      SoftmaxState state{-std::numeric_limits<float>::infinity(), 0};
      std::vector<double> seen;  // scale * score of all steps
      for (const auto& [valid, n] :
           {std::pair<int, int>{1, 64}, {7, 64}, {64, 64}, {33, 512}, {512, 512}, {65, 128}}) {
        const std::vector<float> scores = random.Floats(n, 30);
        const float scale = 0.25f, old_max = state.max;
        std::vector<float> floats = Poisoned(n);
        std::vector<Bf16> bf16(n, 0xcdcd);
        const float factor =
            SoftmaxStep(scores.data(), valid, n, scale, type,
                        type == kB ? static_cast<void*>(bf16.data()) : floats.data(), &state);
        for (int i = 0; i < valid; ++i) seen.push_back(double{scores[i]} * scale);
        const double max = *std::max_element(seen.begin(), seen.end());
        EXPECT_EQ(state.max, static_cast<float>(max));
        EXPECT_NEAR(factor, std::exp2(old_max - max), 1e-6);
        for (int i = 0; i < n; ++i) {
          const double expected = i < valid ? std::exp2(double{scores[i]} * scale - max) : 0;
          const float weight = type == kB ? ToFloat(bf16[i]) : floats[i];
          ASSERT_NEAR(weight, expected, expected * (type == kB ? 0.004 : 4e-6))
              << i << " of " << valid;
        }
        double sum = 0;
        for (const double x : seen) sum += std::exp2(x - max);
        EXPECT_NEAR(state.sum, sum, sum * (type == kB ? 0.004 : 2e-6));
      }
    }
  });
}

TEST(PrefillTest, Refusals) {
  PrefillAttentionArgs args;
  args.head_dim = 128;
  args.num_kv_heads = 1;
  args.group = 1;
  EXPECT_EQ(PrefillAttention(Backend::kCuda, args, nullptr), KernelStatus::kUnsupported);
  args.group = 17;
  EXPECT_EQ(PrefillAttention(Backend::kCpu, args, nullptr), KernelStatus::kUnsupported);
  args.group = 2;  // no queries: nothing to do
  EXPECT_EQ(PrefillAttention(Backend::kCpu, args, nullptr), KernelStatus::kOk);
}

}  // namespace
}  // namespace oscarkv::kernels
