// Blocks that are read much: when they get extra copies, who finds them, what bounds them, and how
// they end.
#include "kvstore/repair/hot.h"

#include <gtest/gtest.h>

#include "repair_fixture.h"
#include "support.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers
using std::chrono::seconds;

// --- The plan ---

class HotPlanTest : public testing::Test {
 protected:
  // A window of 2 s in which a block was read so often: how many copies a step asks for.
  std::optional<uint32_t> Window(uint32_t reads, uint32_t most = 2) {
    now_ += options_.window;
    std::vector<BlockIndex::Hot> hot;
    if (reads > 0) hot.push_back({{0, Key(1)}, Key(1), nullptr, kSize, reads});
    const auto steps = plan_.EndWindow(hot, options_.window, /*replicas=*/2, most, now_);
    if (steps.empty()) return std::nullopt;
    EXPECT_EQ(steps.size(), 1u);
    step_ = steps[0];
    return step_.copies;
  }
  void Made(uint32_t copies) { plan_.Made(step_, copies, now_); }

  const HotOptions options_{};
  HotPlan plan_{options_};
  HotPlan::Step step_;
  Time now_{seconds(1000)};
};

TEST_F(HotPlanTest, OneCopyMorePerWindowWhileItIsHot) {
  EXPECT_EQ(HotPlan::ReportAt(options_), 10u);
  EXPECT_EQ(Window(39), std::nullopt) << "19.5 reads a second";
  EXPECT_EQ(Window(80), 1u);
  EXPECT_EQ(Window(80), 1u) << "it was not carried out";
  Made(1);
  EXPECT_EQ(Window(80), 2u);
  Made(2);
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(80), std::nullopt) << "no more than two";
  EXPECT_EQ(Window(80), 2u) << "renewed after half of their time";
}

TEST_F(HotPlanTest, AShortBurstIsForgotten) {
  EXPECT_EQ(Window(39), std::nullopt);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Window(0), std::nullopt);
  EXPECT_EQ(Window(39), std::nullopt);
}

TEST_F(HotPlanTest, CopiesEndOneByOneWhenDemandGoes) {
  Window(80);
  Made(1);
  Window(80);
  Made(2);
  // Four holders share what two had: 8 reads a second are still too many for three at half of 20.
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(16), std::nullopt);
  EXPECT_EQ(Window(16), 2u);
  Made(2);
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(14), std::nullopt);
  EXPECT_EQ(Window(14), 1u);
  Made(1);
  EXPECT_EQ(plan_.blocks_with_copies(), 1u);
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(0), std::nullopt);
  EXPECT_EQ(Window(0), 0u);
  Made(0);
  EXPECT_EQ(plan_.blocks_with_copies(), 0u);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(Window(0), std::nullopt);
}

TEST_F(HotPlanTest, WhatCouldNotBeMadeIsTriedAgainLater) {
  EXPECT_EQ(Window(80), 1u);
  Made(0);
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(80), std::nullopt);
  EXPECT_EQ(Window(80), 1u);
}

TEST_F(HotPlanTest, NoMoreCopiesThanNodes) {
  EXPECT_EQ(Window(80, 0), std::nullopt);
  EXPECT_EQ(Window(80, 1), 1u);
  Made(1);
  for (int i = 0; i < 14; ++i) EXPECT_EQ(Window(80, 1), std::nullopt);
  EXPECT_EQ(Window(80, 0), 0u) << "the node for it is gone";
}

// --- Nodes ---

class HotTest : public RepairTest {
 protected:
  void Start(int nodes, KvNodeOptions o = {}, HotOptions hot = {}) {
    o.session_ttl = std::chrono::hours(1);  // the client keeps its sessions alive by another clock
    StartNodes(nodes, 2, o, hot);
    specs_.resize(kHot);
    Put();
    Rounds(1);
  }
  // The client gets all blocks.
  void Read() {
    std::memset(buffer_.data(), 0, kHot * kSize);
    ASSERT_TRUE(AllOk(client_->Get(RequestsOf(specs_, buffer_.data()), Soon(), nullptr)));
    for (int b = 0; b < kHot; ++b) {
      ASSERT_EQ(std::string(reinterpret_cast<char*>(buffer_.data()) + b * kSize, kSize),
                Bytes(chain_[b], kSize));
    }
  }
  // Some reader, who chose this node, gets all blocks `times` times.
  void ReadAt(const std::string& name, int times) {
    KvNode* node = servers_[name]->node();
    kv::OpenSessionResponse session;
    ASSERT_TRUE(node->Handle(kv::OpenSessionRequest{"reader", ""}, &session).ok());
    for (int i = 0; i < times; ++i) {
      kv::GetStartResponse got;
      ASSERT_TRUE(node->Handle(
                          kv::GetStartRequest{
                              session.session_id, {chain_.begin(), chain_.begin() + kHot}, {}},
                          &got)
                      .ok());
      told_ = got.locations[0].extra_copies;
    }
    kv::CloseSessionResponse closed;
    ASSERT_TRUE(node->Handle(kv::CloseSessionRequest{session.session_id}, &closed).ok());
  }
  // A window in which each replica served all blocks so often.
  void Window(int reads) {
    ReadAt(Owner(0), reads);
    ReadAt(Owner(1), reads);
    Pass(seconds(2));
    for (const auto& [name, repairer] : repairers_) {
      if (!away_.contains(name)) repairer->RunHotRound();
    }
  }
  // The nodes in their order for these blocks.
  std::string Owner(size_t rank) {
    std::string names;
    for (const auto& [name, server] : servers_) names += name;
    std::vector<uint32_t> nodes;
    Placement(Members(names)).Order(specs_[0].placement, rank + 1, &nodes);
    return std::string(1, names[nodes[rank]]);
  }
  uint64_t AllBlocks() {
    uint64_t sum = 0;
    for (const auto& [name, server] : servers_) sum += Blocks(name);
    return sum;
  }
  int Holders(const BlockKey& key) {
    int holders = 0;
    for (const auto& [name, server] : servers_)
      holders += server->node()->Hold({0, key}) != nullptr;
    return holders;
  }
  void Pass(Duration time) {
    fake_.Advance(time);
    for (const auto& [name, server] : servers_) server->node()->Tick();
  }
  double HotCopies(const char* outcome) { return metrics_.hot_copies.With({outcome}).value(); }

  static constexpr int kHot = 8;  // of one placement
  uint32_t told_ = 0;
};

TEST_F(HotTest, MuchReadBlocksGetCopiesThatServeReadersAndEnd) {
  Start(4);
  EXPECT_EQ(AllBlocks(), 2u * kHot);
  Window(39);  // less than 20 a second
  EXPECT_EQ(AllBlocks(), 2u * kHot);
  Window(100);
  EXPECT_EQ(AllBlocks(), 3u * kHot);
  Window(100);
  EXPECT_EQ(AllBlocks(), 4u * kHot);
  EXPECT_EQ(HotCopies("made"), 2.0 * kHot);
  // The client learns of them from the replica that it asks first. A node that it never read from
  // is tried before those whose speed it knows.
  for (int i = 0; i < 4; ++i) Read();
  for (int rank = 0; rank < 4; ++rank)
    EXPECT_EQ(servers_[Owner(rank)]->calls<kv::GetStartRequest>(), 1) << rank;
  // Nobody restores or lists them, and without readers they end.
  Rounds(3);
  EXPECT_EQ(Waiting(), 0u);
  EXPECT_EQ(Copies("restored"), 0);
  Pass(seconds(61));
  EXPECT_EQ(AllBlocks(), 2u * kHot);
  for (int i = 0; i < kHot; ++i) EXPECT_EQ(Holders(chain_[i]), 2);
}

TEST_F(HotTest, CopiesAreRenewedWhileTheyAreReadAndReadersAreToldInTime) {
  Start(3);
  Window(100);
  EXPECT_EQ(AllBlocks(), 3u * kHot);
  EXPECT_EQ(told_, 0u);
  for (int i = 0; i < 45; ++i) Window(60);
  EXPECT_EQ(AllBlocks(), 3u * kHot) << "after a minute and a half";
  EXPECT_EQ(HotCopies("made"), kHot);
  EXPECT_EQ(HotCopies("renewed"), 7.0 * kHot) << "by both replicas, every 30 s; and at first";
  EXPECT_EQ(told_, 1u);
  EXPECT_EQ(metrics_.hot_blocks.With({Owner(0)}).value(), kHot);
  // Readers are told no more well before the copies end, so that they do not ask in vain.
  int windows = 0;
  for (; told_ > 0 && windows < 40; ++windows) Window(1);
  EXPECT_EQ(AllBlocks(), 3u * kHot);
  EXPECT_EQ(metrics_.hot_blocks.With({Owner(0)}).value(), 0);
  Pass(ExtraCopies::kRemember);
  EXPECT_EQ(AllBlocks(), 3u * kHot);
  Pass(seconds(60));
  EXPECT_EQ(AllBlocks(), 2u * kHot);
}

TEST_F(HotTest, OnlyWhatIsReadMuchOfAGroupIsCopied) {
  StartNodes(3, 2);
  Put();
  Rounds(1);
  specs_.resize(kHot);
  const uint64_t before = AllBlocks();
  Window(400);
  EXPECT_EQ(AllBlocks(), before + kHot) << "16 blocks share the placement of these";
}

TEST_F(HotTest, TheirShareOfMemoryBoundsThem) {
  KvNodeOptions o;
  o.extra_share = 3.5 * kSize / (1 << 20);
  Start(3, o);
  Window(400);
  EXPECT_EQ(AllBlocks(), 2u * kHot + 3);
  EXPECT_EQ(HotCopies("no_room"), 2 * (kHot - 3.0)) << "both replicas tried";
}

TEST_F(HotTest, NoneWithoutAnotherNode) {
  Start(2);
  Window(400);
  EXPECT_EQ(AllBlocks(), 2u * kHot);
  EXPECT_EQ(HotCopies("made") + HotCopies("failed"), 0);
}

TEST_F(HotTest, SwitchedOffNothingIsCounted) {
  HotOptions hot;
  hot.copies = 0;
  Start(3, {}, hot);
  Window(400);
  EXPECT_EQ(AllBlocks(), 2u * kHot);
}

TEST_F(HotTest, ACopyBecomesAReplicaWhenItsNodeBecomesAnOwner) {
  Start(3);
  Window(400);
  EXPECT_EQ(AllBlocks(), 3u * kHot);
  const std::string dead = Owner(0);
  Unplug(dead);
  Rounds(1);
  fake_.Advance(seconds(31));
  Rounds(2);
  EXPECT_EQ(Waiting(), 0u);
  EXPECT_EQ(Copies("restored"), 0) << "no byte travelled";
  EXPECT_EQ(Copies("present"), kHot);
  Pass(seconds(100));
  for (const auto& [name, server] : servers_) {
    if (name == dead) continue;
    EXPECT_EQ(Blocks(name), uint64_t{kHot});
  }
}

TEST_F(HotTest, AnErasureTakesThemAlong) {
  Start(3);
  Window(400);
  Read();  // the client knows of them
  std::vector<BlockKey> keys(chain_.begin(), chain_.begin() + kHot), placement;
  for (const BlockSpec& s : specs_) placement.push_back(s.placement);
  ASSERT_TRUE(client_->Erase(keys, placement, Soon()).ok());
  EXPECT_EQ(AllBlocks(), 0u);
}

TEST_F(HotTest, ASilentNodeGetsNone) {
  Start(3);
  Unplug(Owner(2));
  Rounds(1);
  Window(400);
  EXPECT_EQ(HotCopies("made") + HotCopies("failed"), 0);
}

// --- Room ---

constexpr uint64_t kExact = 1024;  // has its size class from the first block on

kv::PutItem ExtraCopy(int key) {
  kv::PutItem item{Key(key), {}, BlockKind::kPage, kExact, seconds(60)};
  item.placement = Key(key);
  item.restored = true;
  return item;
}

TEST(ExtraCopyTest, OneThatNobodyReadsGoesBeforeAllOthers) {
  KvNodeOptions o;
  o.eviction = EvictionKind::kLru;
  o.shards = 1;  // exact order
  o.slab_bytes = 64 << 10;
  TestNode node(o);
  ASSERT_TRUE(node.Put({Key(0), {}, BlockKind::kPage, kExact}).ok());
  node.Pass(seconds(20));
  ASSERT_TRUE(node.Put(ExtraCopy(9001)).ok());
  ASSERT_TRUE(node.Put(ExtraCopy(9002)).ok());
  node.Pass(seconds(8));
  ASSERT_TRUE(node.Release(*node.Pin(Key(9002))).ok());
  node.Pass(seconds(4));
  int stored = 1;
  while (node.Exists(Key(0)) && node.Exists(Key(9001)))
    ASSERT_TRUE(node.Put({Key(stored++), {}, BlockKind::kPage, kExact}).ok());
  EXPECT_TRUE(node.Exists(Key(0))) << "older, but its own";
  EXPECT_FALSE(node.Exists(Key(9001)));
  ASSERT_TRUE(node.Put({Key(stored++), {}, BlockKind::kPage, kExact}).ok());
  EXPECT_FALSE(node.Exists(Key(0)));
  EXPECT_TRUE(node.Exists(Key(9002))) << "read not long ago: it has its turn";
}

TEST(ExtraCopyTest, OneThatIsPutForGoodStays) {
  TestNode node;
  ASSERT_TRUE(node.Put(ExtraCopy(1)).ok());
  EXPECT_TRUE(node.node().ListBlocks(Duration(0)).empty());
  kv::PutItem again = ExtraCopy(1);
  again.ttl = Duration(0);
  EXPECT_TRUE(absl::IsAlreadyExists(node.Put(again)));
  EXPECT_EQ(node.node().ListBlocks(Duration(0)).size(), 1u);
  node.Pass(seconds(100));
  EXPECT_TRUE(node.Exists(Key(1)));
  // It is one of the ordinary ones for eviction, too.
  ASSERT_TRUE(node.Erase(Key(1)).ok());
  EXPECT_EQ(node.Stats().used_bytes, 0u);
}

}  // namespace
}  // namespace oscarkv
