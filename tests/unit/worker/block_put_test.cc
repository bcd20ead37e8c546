#include "worker/block_put.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "tests/unit/worker/harness.h"

namespace oscarkv::worker {
namespace {

using Op = FakeKvStore::Op;
using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Property;
using testing::SizeIs;

// A sequence of ten full blocks and a few rows, whose slots hold something.
class BlockPutTest : public testing::Test {
 protected:
  BlockPutTest() : names_(parts_.io.NameSpace("")), kv_(&parts_.arena->pool()) {
    names_.Extend(tokens_);
    for (int b = 0; b < 11; ++b) {
      EXPECT_TRUE(kv_.EnsureBlock(b) && kv_.EnsurePage(b));
      std::fill_n(parts_.arena->pool().page(kv_.at(b).page), model_.shape.PageBytes(),
                  static_cast<uint8_t>(b));
      std::fill_n(reinterpret_cast<uint8_t*>(parts_.arena->pool().block(kv_.at(b).block)),
                  model_.shape.Bf16BlockBytes(), static_cast<uint8_t>(100 + b));
    }
  }
  ~BlockPutTest() override {
    EXPECT_THAT(store_.violations(), IsEmpty());
    EXPECT_EQ(store_.open_reservations(), 0);
  }
  std::vector<StoredBlock> Mains(std::initializer_list<int> blocks) {
    std::vector<StoredBlock> out;
    for (int b : blocks) out.push_back(parts_.io.Main(names_, kv_, b));
    return out;
  }
  struct Running {
    std::shared_ptr<BlockPut> put;
    std::future<PutOutcome> outcome;
  };
  Running Start(std::vector<StoredBlock> blocks) {
    auto promise = std::make_shared<std::promise<PutOutcome>>();
    auto outcome = promise->get_future();
    return {parts_.putter.Start(std::move(blocks),
                                [promise](PutOutcome o) { promise->set_value(std::move(o)); }),
            std::move(outcome)};
  }
  PutOutcome PutAll(std::vector<StoredBlock> blocks) {
    Running running = Start(std::move(blocks));
    running.put->AllReady();
    return running.outcome.get();
  }
  static auto Code(absl::StatusCode code) { return Property(&absl::Status::code, code); }

  const ChainRunnerOptions model_;
  FakeKvStore store_{SteadyClock::Get()};
  WorkerParts parts_{model_, &store_, 16, 16};
  const std::vector<int32_t> tokens_ = Prompt(650);
  ChainNames names_;
  SequenceKv kv_;
};

TEST_F(BlockPutTest, PutsAndFetchesTheSameBytes) {
  auto blocks = Mains({0, 1, 2});
  blocks.push_back(parts_.io.Window(names_, kv_, 2));
  blocks.push_back(parts_.io.Partial(names_, kv_, absl::MakeConstSpan(tokens_).subspan(640)));
  const PutOutcome outcome = PutAll(blocks);
  EXPECT_THAT(outcome.statuses, Each(Code(absl::StatusCode::kOk)));
  EXPECT_EQ(outcome.totals.blocks, 5u);
  EXPECT_EQ(store_.Bytes(blocks[1].spec.key).size(), BlockBytes(BlockBody::kPage, model_.shape));

  std::vector<uint8_t> before(parts_.arena->pool().page(kv_.at(1).page),
                              parts_.arena->pool().page(kv_.at(1).page) + model_.shape.PageBytes());
  std::fill_n(parts_.arena->pool().page(kv_.at(1).page), before.size(), 0);
  const std::atomic<bool> cancelled{false};
  TransferTotals totals;
  EXPECT_THAT(parts_.io.Fetch(blocks, cancelled, &totals), Each(Code(absl::StatusCode::kOk)));
  EXPECT_EQ(totals.blocks, 5u);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), parts_.arena->pool().page(kv_.at(1).page)));
}

TEST_F(BlockPutTest, FetchStopsWhenCancelled) {
  const std::atomic<bool> cancelled{true};
  TransferTotals totals;
  EXPECT_THAT(parts_.io.Fetch(Mains({0, 1}), cancelled, &totals),
              Each(Code(absl::StatusCode::kCancelled)));
  EXPECT_EQ(store_.calls(Op::kGet), 0);
}

TEST_F(BlockPutTest, SpecsOfAChain) {
  const auto chain = names_.chain();
  ASSERT_THAT(chain, SizeIs(10));
  const StoredBlock sink = parts_.io.Main(names_, kv_, 0), page = parts_.io.Main(names_, kv_, 5),
                    window = parts_.io.Window(names_, kv_, 5),
                    partial =
                        parts_.io.Partial(names_, kv_, absl::MakeConstSpan(tokens_).subspan(640));
  EXPECT_EQ(sink.spec.kind, BlockKind::kBf16);
  EXPECT_TRUE(sink.spec.parent.empty());
  EXPECT_EQ(page.spec.kind, BlockKind::kPage);
  EXPECT_EQ(page.spec.parent, chain[4]);
  EXPECT_EQ(page.spec.ttl, Duration(0));
  for (const StoredBlock* handover : {&window, &partial}) {
    EXPECT_EQ(handover->spec.kind, BlockKind::kHandover);
    EXPECT_TRUE(handover->spec.parent.empty());
    EXPECT_EQ(handover->spec.ttl, std::chrono::seconds(120));
    EXPECT_EQ(handover->spec.placement, chain[0]);
  }
  EXPECT_EQ(partial.header.tokens, 10);
}

// Kept apart, blocks with a token of the answer have names of their own, and only those.
TEST_F(BlockPutTest, AnswersKeptApart) {
  constexpr size_t kPrompt = 130;
  const auto tokens = Prompt(5 * 64 + 10);
  ChainNames shared(names_.name_space(0)), apart(names_.name_space(0), kPrompt);
  shared.Extend(tokens);
  apart.Extend(tokens);
  ASSERT_EQ(apart.chain().size(), 5u);
  for (size_t b = 0; b < 5; ++b)
    EXPECT_EQ(apart.chain()[b] == shared.chain()[b], (b + 1) * 64 <= kPrompt) << b;

  // The rows behind the last full block: the prompt's, then with the answer's first.
  ChainNames prompt = apart.Fresh(), plain = shared.Fresh();
  prompt.Extend(absl::MakeConstSpan(tokens).first(kPrompt));
  plain.Extend(absl::MakeConstSpan(tokens).first(kPrompt));
  SequenceKv kv(&parts_.arena->pool());
  ASSERT_TRUE(kv.EnsureBlock(2));
  const auto rows = absl::MakeConstSpan(tokens).subspan(128);
  const auto key = [&](const ChainNames& names, size_t n) {
    return parts_.io.Partial(names, kv, rows.first(n)).spec.key;
  };
  EXPECT_EQ(key(prompt, 2), key(plain, 2));
  EXPECT_NE(key(prompt, 3), key(plain, 3));
}

// A partial block behind 16 full ones lives with them: the next run of 16 has no first block yet.
// Without a full block it is alone.
TEST_F(BlockPutTest, PlacementOfPartialBlocks) {
  for (const int n : {10, 16 * 64 + 10}) {
    const auto tokens = Prompt(n);
    ChainNames names = names_.Fresh();
    names.Extend(tokens);
    SequenceKv kv(&parts_.arena->pool());
    ASSERT_TRUE(kv.EnsureBlock(n / 64));
    const StoredBlock partial =
        parts_.io.Partial(names, kv, absl::MakeConstSpan(tokens).subspan(n / 64 * 64));
    EXPECT_EQ(partial.spec.placement, n < 64 ? partial.spec.key : names.chain()[0]);
  }
}

TEST_F(BlockPutTest, StoredBlocksAreNotWrittenAgain) {
  PutAll(Mains({0, 1}));
  const int writes = store_.calls(Op::kWrite);
  const PutOutcome outcome = PutAll(Mains({0, 1}));
  EXPECT_THAT(outcome.statuses, Each(Code(absl::StatusCode::kAlreadyExists)));
  EXPECT_EQ(outcome.totals.bytes, 0u);
  EXPECT_EQ(store_.calls(Op::kWrite), writes);
}

TEST_F(BlockPutTest, NothingIsVisibleBeforeTheLastLayer) {
  Running running = Start(Mains({0, 1}));
  running.put->LayersReady(1);
  running.put->LayersReady(2);
  EXPECT_EQ(store_.size(), 0u);
  running.put->LayersReady(3);
  EXPECT_THAT(running.outcome.get().statuses, Each(Code(absl::StatusCode::kOk)));
  EXPECT_EQ(store_.size(), 2u);
}

TEST_F(BlockPutTest, AbandonedPutLeavesNothing) {
  Running running = Start(Mains({0, 1}));
  running.put->LayersReady(2);
  running.put->Abandon();
  EXPECT_THAT(running.outcome.get().statuses, Each(Code(absl::StatusCode::kCancelled)));
  EXPECT_EQ(store_.size(), 0u);
}

TEST_F(BlockPutTest, SecondPutOfABlockWaitsForTheFirst) {
  Running first = Start(Mains({0, 1, 2}));
  Running second = Start(Mains({2, 3}));
  second.put->AllReady();
  EXPECT_EQ(second.outcome.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  first.put->AllReady();
  EXPECT_THAT(first.outcome.get().statuses, Each(Code(absl::StatusCode::kOk)));
  EXPECT_THAT(second.outcome.get().statuses,
              testing::UnorderedElementsAre(Code(absl::StatusCode::kOk),
                                            Code(absl::StatusCode::kAlreadyExists)));
  EXPECT_EQ(store_.size(), 4u);
}

TEST_F(BlockPutTest, SecondPutHearsThatTheFirstFailed) {
  Running first = Start(Mains({0}));
  Running second = Start(Mains({0}));
  second.put->AllReady();
  first.put->Abandon();
  EXPECT_THAT(second.outcome.get().statuses, ElementsAre(Code(absl::StatusCode::kCancelled)));
  EXPECT_THAT(PutAll(Mains({0})).statuses,
              ElementsAre(Code(absl::StatusCode::kOk)));  // the way is free again
}

TEST_F(BlockPutTest, EachFailureIsReported) {
  for (const Op op : {Op::kStartPut, Op::kWrite, Op::kCommit}) {
    store_.set_fault([=](Op o, const BlockKey*) {
      return o == op ? absl::UnavailableError("no") : absl::OkStatus();
    });
    EXPECT_THAT(PutAll(Mains({0, 1})).statuses, Each(Code(absl::StatusCode::kUnavailable)));
    EXPECT_EQ(store_.size(), 0u);
  }
}

TEST(AddTotals, UnitesLanes) {
  TransferTotals sum{10, 1, "posix"};
  AddTotals({5, 2, "tcp,posix"}, &sum);
  AddTotals({0, 0, ""}, &sum);
  EXPECT_EQ(sum.bytes, 15u);
  EXPECT_EQ(sum.blocks, 3u);
  EXPECT_EQ(sum.lanes, "posix,tcp");
}

}  // namespace
}  // namespace oscarkv::worker
