#include "prefill_worker/prefill_plan.h"

#include <gtest/gtest.h>

#include <vector>

namespace oscarkv {
namespace {

TEST(StartPosition, Table) {
  struct Case {
    const char* name;
    int tokens, matched;
    bool window;
    WindowMiss on_miss;
    int start;
  };
  for (const Case& c : std::vector<Case>{
           {"nothing stored", 100, 0, true, WindowMiss::kRecompute, 0},
           {"one token", 1, 0, true, WindowMiss::kRecompute, 0},
           {"sink only", 100, 1, true, WindowMiss::kRecompute, 64},
           {"suffix behind the match", 1000, 10, true, WindowMiss::kRecompute, 640},
           {"all blocks match, rest is partial", 650, 10, true, WindowMiss::kRecompute, 640},
           {"all blocks match, nothing left", 640, 10, true, WindowMiss::kRecompute, 639},
           {"whole prompt is the sink", 64, 1, true, WindowMiss::kRecompute, 63},
           {"no window", 1000, 10, false, WindowMiss::kRecompute, 384},
           {"no window, nothing left", 640, 10, false, WindowMiss::kRecompute, 384},
           {"no window, short match", 1000, 3, false, WindowMiss::kRecompute, 64},
           {"no window, all", 1000, 10, false, WindowMiss::kAll, 0},
           {"window, all", 1000, 10, true, WindowMiss::kAll, 640},
       }) {
    EXPECT_EQ(StartPosition(c.tokens, c.matched, c.window, c.on_miss), c.start) << c.name;
  }
}

TEST(PlanSlots, Table) {
  struct Case {
    int tokens, matched;
    bool coded;
    int first_bf16, num_blocks, num_pages, bf16_slots;
  };
  for (const Case& c : std::vector<Case>{
           {1, 0, true, 0, 1, 0, 1},
           {64, 0, true, 0, 1, 0, 1},
           {65, 0, true, 0, 2, 0, 2},
           {128, 0, true, 0, 2, 1, 2},
           {640, 0, true, 0, 10, 9, 10},
           {641, 0, true, 0, 11, 9, 11},
           {1000, 10, true, 6, 16, 14, 11},
           {1000, 2, true, 1, 16, 14, 16},
           {1000, 10, false, 0, 16, 0, 16},
       }) {
    const SlotPlan plan = PlanSlots(c.tokens, c.matched, c.coded);
    EXPECT_EQ(plan.first_bf16, c.first_bf16) << c.tokens;
    EXPECT_EQ(plan.num_blocks, c.num_blocks) << c.tokens;
    EXPECT_EQ(plan.num_pages, c.num_pages) << c.tokens;
    EXPECT_EQ(plan.bf16_slots(), c.bf16_slots) << c.tokens << " " << c.matched;
  }
}

}  // namespace
}  // namespace oscarkv
