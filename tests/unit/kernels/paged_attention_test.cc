#include "kernels/paged_attention/op.h"

#include <gtest/gtest.h>

#include "kernels/thread_pool.h"
#include "tests/unit/kernels/paged_attention_cache.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

TEST(PagedAttentionTest, RefMatchesNaive) {
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(testing::Message() << c.name << " group " << c.group << " offsets " << c.offsets);
    const Cache cache(c, 3);
    std::vector<float> out, lse, expected, expected_lse;
    ASSERT_EQ(PagedAttention(Backend::kRef, cache.Args(&out, &lse), nullptr), KernelStatus::kOk);
    cache.Naive(&expected, &expected_lse);
    EXPECT_LT(WorstRowError(out, expected, c.head_dim), 1e-5);
    for (size_t i = 0; i < lse.size(); ++i)
      EXPECT_NEAR(lse[i], expected_lse[i], 1e-5 * (1 + std::abs(expected_lse[i])));
  }
}

TEST(PagedAttentionTest, CpuMatchesRef) {
  ThreadPool pool(2), many(5);
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(testing::Message() << c.name << " group " << c.group << " offsets " << c.offsets);
    const Cache cache(c, 4);
    std::vector<float> expected, expected_lse;
    ASSERT_EQ(PagedAttention(Backend::kRef, cache.Args(&expected, &expected_lse), &pool),
              KernelStatus::kOk);
    ForEachSimdTarget([&] {
      std::vector<float> out, lse;
      for (Executor* executor : {static_cast<Executor*>(nullptr), static_cast<Executor*>(&many)}) {
        ASSERT_EQ(PagedAttention(Backend::kCpu, cache.Args(&out, &lse), executor),
                  KernelStatus::kOk);
        // Weights times V's scale are rounded, and a row of levels about zero is the shorter one
        // in units of its scale.
        EXPECT_LT(WorstRowError(out, expected, c.head_dim), c.offsets ? 2e-4 : 2.5e-4);
        for (size_t i = 0; i < lse.size(); ++i)
          EXPECT_NEAR(lse[i], expected_lse[i], 1e-4 * (1 + std::abs(expected_lse[i])));
      }
    });
  }
}

// Few kv heads and many threads: sequences are cut into parts, at pages and at bf16 blocks.
TEST(PagedAttentionTest, SplitSequences) {
  ThreadPool pool(4);
  for (const Case& c :
       {Case{"long", 128, 1, 4, {{333, 5, 7}}}, Case{"bf16", 64, 1, 3, {{0, 90, 1}}},
        Case{"both", 128, 1, 2, {{70, 70, 64}, {1, 1, 1}, {40, 0, 64}}},
        Case{"centred", 128, 1, 2, {{170, 7, 64}, {40, 0, 64}}, 1, Content::kNormal, false}}) {
    SCOPED_TRACE(c.name);
    const Cache cache(c, 5);
    std::vector<float> out, lse, again, expected, expected_lse;
    ASSERT_EQ(PagedAttention(Backend::kRef, cache.Args(&expected, &expected_lse), &pool),
              KernelStatus::kOk);
    ASSERT_EQ(PagedAttention(Backend::kCpu, cache.Args(&out, &lse), &pool), KernelStatus::kOk);
    EXPECT_LT(WorstRowError(out, expected, c.head_dim), 2e-4);
    // Without lse; and twice the same gives the same.
    ASSERT_EQ(PagedAttention(Backend::kCpu, cache.Args(&again, nullptr), &pool), KernelStatus::kOk);
    EXPECT_EQ(out, again);
    for (size_t i = 0; i < lse.size(); ++i)
      EXPECT_NEAR(lse[i], expected_lse[i], 1e-4 * (1 + std::abs(expected_lse[i])));
  }
}

TEST(PagedAttentionTest, EveryLastTokenCount) {
  for (int tokens = 1; tokens <= 64; ++tokens) {
    const Case c{"last", 128, 1, 2, {{1, 2, tokens}}};
    const Cache cache(c, tokens);
    std::vector<float> out, expected;
    ASSERT_EQ(PagedAttention(Backend::kRef, cache.Args(&expected, nullptr), nullptr),
              KernelStatus::kOk);
    ASSERT_EQ(PagedAttention(Backend::kCpu, cache.Args(&out, nullptr), nullptr), KernelStatus::kOk);
    EXPECT_LT(WorstRowError(out, expected, 128), 2e-4) << tokens;
  }
}

TEST(PagedAttentionTest, UnsupportedShapes) {
  const Case c{"shape", 128, 1, 1, {{0, 1, 1}}};
  const Cache cache(c, 1);
  std::vector<float> out;
  PagedAttentionArgs args = cache.Args(&out, nullptr);
  EXPECT_EQ(PagedAttention(Backend::kCuda, args, nullptr), KernelStatus::kUnsupported);
  args.group = 17;
  EXPECT_EQ(PagedAttention(Backend::kCpu, args, nullptr), KernelStatus::kUnsupported);
  args.group = 1;
  args.head_dim = 96;
  EXPECT_EQ(PagedAttention(Backend::kRef, args, nullptr), KernelStatus::kUnsupported);
}

}  // namespace
}  // namespace oscarkv::kernels
