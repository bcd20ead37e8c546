// Nodes that restore each other's lost copies: what a death, an empty return, an erasure, damage, a
// full node and a drain do to the copies.
#include "kvstore/repair/repairer.h"

#include <gtest/gtest.h>

#include "repair_fixture.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers
using std::chrono::seconds;

TEST(RepairViewTest, AnotherNodeTakesTheFirstPlacesOfThoseThatAreGone) {
  const RepairView all(Members("abcd"), std::vector<Presence>(4, Presence::kHere), 2);
  const RepairView without_b(
      Members("abcd"), {Presence::kHere, Presence::kGone, Presence::kSilent, Presence::kHere}, 2);
  int moved = 0;
  for (int i = 0; i < 200; ++i) {
    std::vector<uint32_t> before, after, order;
    all.Owners(Key(i), &before);
    without_b.Owners(Key(i), &after);
    Placement(Members("abcd")).Order(Key(i), 3, &order);
    ASSERT_EQ(before, std::vector<uint32_t>({order[0], order[1]}));
    std::erase(order, 1u);
    order.resize(2);
    EXPECT_EQ(after, order);
    moved += before != after;
  }
  EXPECT_GT(moved, 60);   // half of the blocks had a copy on b
  EXPECT_LT(moved, 140);  // and the silent c keeps its own
  EXPECT_EQ(all.IndexOf("c"), 2u);
  EXPECT_EQ(all.IndexOf("x"), 4u);
}

TEST(RepairViewTest, TwoNodesWithTheSameBlocksHaveTheSameDigests) {
  const RepairView view(Members("abc"), std::vector<Presence>(3, Presence::kHere), 2);
  Tenant tenant, other;
  other.digest[3] = 1;
  std::vector<BlockIndex::Listed> blocks;
  for (int i = 0; i < 300; ++i) blocks.push_back({{0, Key(i)}, Key(i / 16), &tenant, kSize, {}});
  const Survey of_a = SurveyBlocks(view, 0, blocks);
  std::reverse(blocks.begin(), blocks.end());
  Survey of_b = SurveyBlocks(view, 1, blocks);
  EXPECT_EQ(of_a.peers[1].digests, of_b.peers[0].digests);
  EXPECT_TRUE(of_a.peers[0].digests.empty());
  size_t shared = 0, guests = 0;
  for (const auto& bucket : of_a.peers[1].buckets) shared += bucket.size();
  for (const auto& peer : of_a.peers) guests += peer.guests.size();
  EXPECT_GT(shared, 0u);
  EXPECT_EQ(guests % 2, 0u);  // blocks of b and c: each of them should have it
  // One block less, or of another tenant: exactly its bucket differs.
  std::vector<uint32_t> owners;
  size_t k = 0;
  for (; k < blocks.size(); ++k) {
    view.Owners(blocks[k].placement, &owners);
    if (std::find(owners.begin(), owners.end(), 2u) == owners.end()) break;
  }
  ASSERT_LT(k, blocks.size());
  blocks[k].tenant = &other;
  of_b = SurveyBlocks(view, 1, blocks);
  int differing = 0;
  for (size_t i = 0; i < kv::kDigestBuckets; ++i)
    differing += of_a.peers[1].digests[i] != of_b.peers[0].digests[i];
  EXPECT_EQ(differing, 1);
}

TEST(RepairViewTest, BlocksThatWaitForANodeAreKnown) {
  const RepairView view(Members("ab"), {Presence::kHere, Presence::kSilent}, 2);
  const RepairView alone(Members("ab"), {Presence::kHere, Presence::kGone}, 2);
  Tenant tenant;
  const std::vector<BlockIndex::Listed> blocks = {{{0, Key(1)}, Key(1), &tenant, kSize, {}}};
  EXPECT_TRUE(SurveyBlocks(view, 0, blocks).silent_owner[0]);
  EXPECT_FALSE(SurveyBlocks(view, 0, blocks).no_node[0]);
  EXPECT_FALSE(SurveyBlocks(alone, 0, blocks).silent_owner[0]);
  EXPECT_TRUE(SurveyBlocks(alone, 0, blocks).no_node[0]);
}

TEST_F(RepairTest, APutThatGotOneCopyGetsItsSecond) {
  StartNodes(3, /*client_replicas=*/1);
  Put();
  EXPECT_EQ(Blocks("a") + Blocks("b") + Blocks("c"), uint64_t{kBlocks});
  Rounds(1);
  EXPECT_EQ(Blocks("a") + Blocks("b") + Blocks("c"), 2u * kBlocks);
  EXPECT_EQ(Copies("restored"), kBlocks);
  EXPECT_EQ(metrics_.bytes.Get().value(), kBlocks * kSize);
  Rounds(2);
  EXPECT_EQ(Waiting(), 0u);
  EXPECT_EQ(Copies("restored"), kBlocks);
  for (const char* node : {"a", "b", "c"}) {
    SCOPED_TRACE(node);
    Unplug(node);
    ExpectAll();
    servers_[node]->set_plugged(true);
    away_.clear();
  }
}

TEST_F(RepairTest, AQuietClusterComparesDigestsOnly) {
  StartNodes(3, 2);
  Put();
  Rounds(2);  // digests are those of a node's last round
  const auto asked = [&] {
    int calls = 0;
    for (const auto& [name, server] : servers_) calls += server->calls<kv::CompareBlocksRequest>();
    return calls;
  };
  const int before = asked();
  Rounds(5);
  EXPECT_EQ(asked(), before);
  EXPECT_EQ(Copies("restored"), 0);
  EXPECT_EQ(Waiting(), 0u);
}

TEST_F(RepairTest, StatsSayHowOldTheComparisonIs) {
  StartNodes(3, 2);
  Rounds(1);
  const auto age = [&] { return servers_["a"]->Stats().replicas.compared_ms_ago; };
  EXPECT_EQ(age(), 0u);
  fake_.Advance(seconds(7));
  EXPECT_EQ(age(), 7000u);
  Rounds(1);
  EXPECT_EQ(age(), 0u);
}

TEST_F(RepairTest, BlocksOfADeadNodeGetAnotherCopyAfterTheGrace) {
  StartNodes(3, 2);
  Put();
  Rounds(2);
  const uint64_t lost = Blocks("c");
  ASSERT_GT(lost, 0u);
  Unplug("c");
  Rounds(1);
  EXPECT_EQ(Waiting(), lost) << "known at once";
  EXPECT_EQ(stats_["a"].silent_peers, 1u);
  EXPECT_EQ(Copies("restored"), 0) << "it may come back";
  fake_.Advance(seconds(31));
  Rounds(2);
  EXPECT_EQ(Copies("restored"), lost);
  EXPECT_EQ(Waiting(), 0u);
  EXPECT_EQ(Blocks("a"), uint64_t{kBlocks});
  EXPECT_EQ(Blocks("b"), uint64_t{kBlocks});
  // The second death loses nothing either.
  Unplug("b");
  ExpectAll();
  // With fewer nodes than copies nothing can be done, and it is said.
  fake_.Advance(seconds(1));
  Rounds(1);
  fake_.Advance(seconds(31));
  Rounds(1);
  EXPECT_EQ(stats_["a"].no_node_blocks, uint64_t{kBlocks});
  EXPECT_EQ(stats_["a"].waiting_blocks, 0u);
  // Both come back, empty.
  Return("b");
  Return("c");
  Settle();
  EXPECT_GE(Blocks("b") + Blocks("c"), uint64_t{kBlocks});
  EXPECT_EQ(stats_["a"].no_node_blocks, 0u);
  EXPECT_EQ(stats_["a"].silent_peers, 0u);
  Unplug("a");
  ExpectAll();
}

TEST_F(RepairTest, ANodeThatReturnsWithinTheGraceGetsWhatItLacks) {
  StartNodes(2, 2);
  Put();
  Unplug("b");
  Rounds(1);
  EXPECT_EQ(stats_["a"].waiting_blocks, uint64_t{kBlocks});
  Return("b");
  Settle();
  EXPECT_EQ(Blocks("b"), uint64_t{kBlocks});
  EXPECT_EQ(Waiting(), 0u);
  Unplug("a");
  ExpectAll();
}

TEST_F(RepairTest, ErasedBlocksDoNotComeBack) {
  StartNodes(3, 2);
  Put();
  Unplug("c");
  std::vector<BlockKey> placement;
  for (const BlockSpec& s : specs_) placement.push_back(s.placement);
  // c cannot be asked.
  EXPECT_TRUE(absl::IsUnavailable(client_->Erase(chain_, placement, Soon())));
  EXPECT_EQ(Blocks("a") + Blocks("b"), 0u);
  servers_["c"]->set_plugged(true);
  away_.clear();
  Rounds(3);
  EXPECT_EQ(Blocks("a") + Blocks("b"), 0u);
  EXPECT_EQ(Blocks("c"), 0u) << "what the others were told to forget, c forgets";
  // A client may put it again, and then it has copies.
  Await([&] { return client_->Stats(Soon())[2].reachable; });
  Put();
  Rounds(3);
  EXPECT_EQ(Blocks("a") + Blocks("b") + Blocks("c"), 2u * kBlocks);
}

TEST_F(RepairTest, ACorruptCopyIsReplacedByTheGoodOne) {
  StartNodes(2, 2);
  Put();
  ASSERT_TRUE(servers_["a"]->Damage(chain_[7], kSize));
  int found = 0;
  for (const BlockIndex::Listed& block : servers_["a"]->node()->ListBlocks(Duration(0)))
    found += absl::IsDataLoss(servers_["a"]->node()->CheckBlock(block.key, "scrub"));
  EXPECT_EQ(found, 1);
  EXPECT_EQ(Blocks("a"), kBlocks - 1u);
  Rounds(2);
  EXPECT_EQ(Blocks("a"), uint64_t{kBlocks});
  EXPECT_EQ(Blocks("b"), uint64_t{kBlocks});
  Unplug("b");
  ExpectAll();
}

TEST_F(RepairTest, DamageDoesNotSpread) {
  StartNodes(2, /*client_replicas=*/1);
  Put();
  const bool on_a = servers_["a"]->Damage(chain_[7], kSize);
  ASSERT_TRUE(on_a || servers_["b"]->Damage(chain_[7], kSize));
  Rounds(3);
  // The only copy was bad: it is nowhere now, and a miss is no wrong answer.
  EXPECT_EQ(Blocks("a"), kBlocks - 1u);
  EXPECT_EQ(Blocks("b"), kBlocks - 1u);
  EXPECT_GE(Copies("failed"), 1);
  EXPECT_EQ(Waiting(), 0u);
}

TEST_F(RepairTest, ADrainBringsTheCopiesElsewhere) {
  StartNodes(3, 2);
  Put();
  Rounds(2);
  const uint64_t of_b = Blocks("b"), of_c = Blocks("c"), leaving = Blocks("a");
  ASSERT_GT(leaving, 0u);
  EXPECT_EQ(repairers_["a"]->Drain(fake_.Now() + seconds(5)), 0u);
  EXPECT_EQ(Blocks("b") + Blocks("c"), of_b + of_c + leaving);
  Unplug("a");
  Unplug("b");
  ExpectAll();
}

TEST_F(RepairTest, ADrainWithoutTimeSaysWhatItLeaves) {
  StartNodes(2, /*client_replicas=*/1);
  Put();
  EXPECT_EQ(repairers_["a"]->Drain(fake_.Now()), 0u);  // nobody looked: nothing is known
  EXPECT_EQ(Blocks("a") + Blocks("b"), uint64_t{kBlocks});
}

TEST_F(RepairTest, TenantsKeepTheirOwn) {
  StartNodes(2, 1);
  KvClientOptions o;
  o.replicas = 1;
  o.tenant = "acme";
  Connect(o);
  Put();
  Rounds(2);
  EXPECT_EQ(Blocks("a"), uint64_t{kBlocks});
  EXPECT_EQ(Blocks("b"), uint64_t{kBlocks});
  Unplug("a");
  ExpectAll();
  o.tenant = "other";
  Connect(o);
  EXPECT_EQ(*client_->Match(chain_, Soon()), 0u);
}

TEST_F(RepairTest, HandOverBlocksAndOneCopyAreLeftAlone) {
  StartNodes(2, 1);
  for (BlockSpec& s : specs_) {
    s.kind = BlockKind::kHandover;
    s.ttl = seconds(100);
  }
  Put();
  Rounds(2);
  EXPECT_EQ(Copies("restored"), 0);
}

TEST_F(RepairTest, TheThreadStartsAndStops) {
  StartNodes(2, 1);
  Put();
  for (const auto& [name, repairer] : repairers_) repairer->Start();
  Await([&] { return Blocks("a") + Blocks("b") == 2u * kBlocks; });
  for (const auto& [name, repairer] : repairers_) repairer->Stop();
}

// --- What a node takes ---

kv::PutItem CopyOf(int key, Duration idle) {
  kv::PutItem item{Key(key), {}, BlockKind::kPage, kSize};
  item.placement = Key(key);
  item.restored = true;
  item.idle = idle;
  return item;
}

kv::CopyState StateOf(TestNode* node, int key, uint32_t idle_seconds) {
  kv::CompareBlocksResponse response;
  EXPECT_TRUE(node->node()
                  .Handle(kv::CompareBlocksRequest{DigestOfTenant(""), {Key(key)}, {idle_seconds}},
                          &response)
                  .ok());
  return response.states.at(0);
}

TEST(NodeCopiesTest, AFullNodeTakesOnlyWhatIsMuchHotter) {
  KvNodeOptions o;
  o.eviction = EvictionKind::kLru;
  o.slab_bytes = 64 << 10;
  TestNode node(o);
  EXPECT_EQ(StateOf(&node, 5000, 100000), kv::CopyState::kWanted) << "there is room";
  int stored = 0;
  while (static_cast<double>(node.Stats().used_bytes) <
         o.low_watermark * static_cast<double>(node.Stats().capacity_bytes))
    ASSERT_TRUE(node.Put({Key(stored++), {}, BlockKind::kPage, kSize}).ok());
  node.Pass(seconds(60));
  EXPECT_EQ(StateOf(&node, 5000, 30), kv::CopyState::kNoRoom);
  EXPECT_TRUE(absl::IsResourceExhausted(node.Put(CopyOf(5000, seconds(30)))));
  EXPECT_EQ(StateOf(&node, 5000, 20), kv::CopyState::kWanted);
  EXPECT_TRUE(node.Put(CopyOf(5000, seconds(20))).ok());
  EXPECT_EQ(StateOf(&node, 5000, 20), kv::CopyState::kStored);
  // A use at the other node is one here, too: what was the coldest is kept.
  EXPECT_EQ(StateOf(&node, 0, 1), kv::CopyState::kStored);
}

TEST(NodeCopiesTest, AnErasureIsRememberedForAWhile) {
  TestNode node;
  ASSERT_TRUE(node.Put({Key(1), {}, BlockKind::kPage, kSize}).ok());
  ASSERT_TRUE(node.Erase(Key(1)).ok());
  EXPECT_EQ(StateOf(&node, 1, 0), kv::CopyState::kErased);
  EXPECT_TRUE(absl::IsFailedPrecondition(node.Put(CopyOf(1, seconds(0)))));
  node.Pass(std::chrono::minutes(11));
  EXPECT_EQ(StateOf(&node, 1, 0), kv::CopyState::kWanted);
  EXPECT_TRUE(node.Put(CopyOf(1, seconds(0))).ok());
}

TEST(NodeCopiesTest, ACopyBeyondTheQuotaIsRefused) {
  KvNodeOptions o;
  o.tenant_quota_bytes = 4096;
  TestNode node(o);
  ASSERT_TRUE(node.Put({Key(1), {}, BlockKind::kPage, 3000}).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(node.Put(CopyOf(2, seconds(0)))));
  EXPECT_TRUE(node.Exists(Key(1))) << "nothing of the tenant's own went for it";
}

TEST(NodeCopiesTest, AHeldBlockStaysAndIsNoPinOfAReader) {
  TestNode node;
  ASSERT_TRUE(node.Put({Key(1), {}, BlockKind::kPage, kSize}).ok());
  const uint64_t used = node.Stats().used_bytes;
  auto held = node.node().Hold({0, Key(1)});
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(node.Stats().pinned_bytes, 0u);
  const auto pin = node.Pin(Key(1));
  ASSERT_TRUE(pin.has_value());
  EXPECT_EQ(node.Stats().pinned_bytes, kSize);
  EXPECT_TRUE(node.Release(*pin).ok());
  EXPECT_EQ(node.Stats().pinned_bytes, 0u);
  ASSERT_TRUE(node.Erase(Key(1)).ok());
  const absl::Span<const uint8_t> bytes = node.node().BytesOf(*held);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), Bytes(Key(1), kSize));
  EXPECT_EQ(node.Stats().used_bytes, used) << "its memory is still read";
  held.reset();
  EXPECT_EQ(node.Stats().used_bytes, 0u);
  EXPECT_EQ(node.node().Hold({0, Key(1)}), nullptr);
}

TEST(NodeCopiesTest, BrokenComparisonsAreRefused) {
  TestNode node;
  kv::CompareDigestsResponse digests;
  EXPECT_TRUE(absl::IsInvalidArgument(
      node.node().Handle(kv::CompareDigestsRequest{"x", {1, 2}}, &digests)));
  kv::CompareBlocksResponse blocks;
  EXPECT_TRUE(absl::IsInvalidArgument(
      node.node().Handle(kv::CompareBlocksRequest{{}, {Key(1)}, {}}, &blocks)));
  // Of a peer that it never looked at, everything differs.
  EXPECT_TRUE(node.node()
                  .Handle(kv::CompareDigestsRequest{"x", std::vector<uint64_t>(kv::kDigestBuckets)},
                          &digests)
                  .ok());
  EXPECT_EQ(digests.differing.size(), kv::kDigestBuckets);
}

}  // namespace
}  // namespace oscarkv
