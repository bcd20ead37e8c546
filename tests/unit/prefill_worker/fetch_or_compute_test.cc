// A prefill worker before stores of all speeds: what it fetches, what it computes, and that the
// answer is the same. A fake clock passes only while the store or the model works.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/harness.h"

namespace oscarkv {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Op = FakeKvStore::Op;

class FetchOrComputeTest : public testing::Test {
 protected:
  explicit FetchOrComputeTest(WindowMiss on_miss = WindowMiss::kRecompute)
      : worker_(model_, &store_,
                {.chunk_tokens = 128,
                 .window_miss = on_miss,
                 .fetch = {.measured = true, .margin = 0.25f, .min_wait = milliseconds(20)}},
                128, 128, &clock_) {
    worker_.parts.runner.before = [this](bool, int size, int) {
      clock_.Advance(size * per_token_);
      return absl::OkStatus();
    };
    store_.set_fault([this](Op op, const BlockKey* key) {
      if (op == Op::kGet && key != nullptr) {
        ++asked_;
        clock_.Advance(asked_ > slow_from_ ? slow_ : per_block_);
      }
      return absl::OkStatus();
    });
  }
  ~FetchOrComputeTest() override {
    worker_.engine.Shutdown(Duration(0));
    EXPECT_TRUE(worker_.parts.AllFree());
    EXPECT_THAT(store_.violations(), testing::IsEmpty());
  }

  // Runs a prompt, checks its token; returns how many tokens came from the store.
  int Cached(const std::vector<int32_t>& prompt) {
    asked_ = 0;
    const Time before = clock_.Now();
    auto r = worker_.Run(prompt);
    EXPECT_TRUE(r.ok()) << r.status();
    if (!r.ok()) return -1;
    took_ = clock_.Now() - before;
    EXPECT_EQ(r->first_token.token, ExpectedTokens(model_, prompt, 1)[0]);
    return r->cached_tokens;
  }
  double Fate(const char* fate) { return worker_.metrics.prefix_tokens.With({fate}).value(); }

  ChainRunnerOptions model_;
  FakeClock clock_;
  FakeKvStore store_{&clock_};
  Duration per_token_ = milliseconds(1);
  Duration per_block_ = microseconds(100);
  Duration slow_{0};  // instead, after the first slow_from_ blocks of a prompt
  int slow_from_ = 1 << 30;
  int asked_ = 0;
  Duration took_{};
  PrefillWorkerUnderTest worker_;
};

TEST_F(FetchOrComputeTest, FastStoreIsUsed) {
  EXPECT_EQ(Cached(Prompt(1300)), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Cached(Prompt(1300)), 1280);
  EXPECT_EQ(Fate("fetched"), 5 * 1280);
  EXPECT_EQ(Fate("chosen") + Fate("late") + Fate("lost"), 0);
}

// A block takes eleven times what computing its 64 tokens does.
TEST_F(FetchOrComputeTest, SlowStoreIsLeftAndThenNotAsked) {
  Cached(Prompt(1300));
  const Duration computed = took_;
  per_block_ = milliseconds(700);
  // The first get is given up after 1.25 times the computing of its 16 blocks, 1.28 s; one block,
  // the sink, had come by then.
  EXPECT_EQ(Cached(Prompt(1300)), 64);
  EXPECT_LE(took_, computed + milliseconds(1280 + 700 * 15));  // the fake serves all it was asked
  EXPECT_EQ(Fate("late"), 1280 - 64);
  EXPECT_LE(asked_, 16);
  // Known now: computed by choice, without asking.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Cached(Prompt(1300)), 0);
    EXPECT_EQ(asked_, 0);
    EXPECT_EQ(took_, computed);
  }
  EXPECT_EQ(Fate("chosen"), 3 * 1280);
}

TEST_F(FetchOrComputeTest, StoreThatIsFastAgainIsFoundOut) {
  Cached(Prompt(1300));
  per_block_ = milliseconds(700);
  Cached(Prompt(1300));
  EXPECT_EQ(Cached(Prompt(1300)), 0);
  per_block_ = microseconds(100);
  EXPECT_EQ(Cached(Prompt(1300)), 0);  // nobody has looked
  clock_.Advance(FetchPolicy::kForget);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Cached(Prompt(1300)), 1280);
}

// It becomes slow in the middle of a fetch: what has come is used, the rest computed.
TEST_F(FetchOrComputeTest, PartOfAPrefixIsUsed) {
  Cached(Prompt(2600));
  for (int i = 0; i < 3; ++i) Cached(Prompt(2600));
  slow_from_ = 20;
  slow_ = seconds(2);
  // 16 blocks of the first get and 4 of the second one; of these 20, four are computed again for
  // their bf16 rows.
  EXPECT_EQ(Cached(Prompt(2600)), (20 - 4) * 64);
  EXPECT_EQ(Fate("late"), 2560 - 16 * 64);
  EXPECT_EQ(asked_, 32);
}

// While the model is fast and the network is not, nothing is worth a get.
TEST_F(FetchOrComputeTest, FastModelComputes) {
  per_token_ = microseconds(10);
  per_block_ = milliseconds(5);
  Cached(Prompt(1300));
  Cached(Prompt(1300));  // measures
  EXPECT_EQ(Cached(Prompt(1300)), 0);
  EXPECT_GT(Fate("chosen"), 0);
}

// Less than the least wait is not worth a thought: a short prefix is fetched whatever was measured.
TEST_F(FetchOrComputeTest, SmallDifferencesDoNotDecide) {
  per_token_ = microseconds(1);
  per_block_ = milliseconds(2);
  Cached(Prompt(300));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Cached(Prompt(300)), 256);
  EXPECT_EQ(Fate("chosen") + Fate("late"), 0);
}

class WholePromptTest : public FetchOrComputeTest {
 protected:
  WholePromptTest() : FetchOrComputeTest(WindowMiss::kAll) {}
};

// A part of a prefix is of no use there, and --deterministic implies it.
TEST_F(WholePromptTest, FetchesHoweverSlow) {
  Cached(Prompt(1300));
  per_block_ = milliseconds(100);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Cached(Prompt(1300)), 1280);
}

}  // namespace
}  // namespace oscarkv
