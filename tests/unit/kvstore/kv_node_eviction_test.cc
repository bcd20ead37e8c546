// Who has to go when memory is short, and who pays: a node under pressure, under a fake clock.
#include "kvstore/core/kv_node.h"

#include <gtest/gtest.h>

#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Chain;
using kvtest::Key;
using kvtest::Table;
using kvtest::TestNode;
using std::chrono::seconds;

constexpr uint64_t kSize = 3000;

kv::PutItem Item(const BlockKey& key, const BlockKey& parent = {}, uint64_t size = kSize) {
  return {key, parent, BlockKind::kPage, size};
}

class EvictionUnderPressure : public testing::TestWithParam<EvictionKind> {
 protected:
  KvNodeOptions Options() const {
    KvNodeOptions o;
    o.eviction = GetParam();
    o.shards = 4;
    return o;
  }
};
INSTANTIATE_TEST_SUITE_P(Policies, EvictionUnderPressure,
                         testing::Values(EvictionKind::kS3Fifo, EvictionKind::kLru));

TEST_P(EvictionUnderPressure, PutsGoOnAndPinnedBlocksStay) {
  TestNode n(Options(), 1 << 20);
  std::vector<kv::BlockLocation> pinned;
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(n.Put(Item(Key(i))).ok());
    pinned.push_back(*n.Pin(Key(i)));
  }
  for (int i = 1000; i < 3000; ++i) ASSERT_TRUE(n.Put(Item(Key(i))).ok()) << i;
  EXPECT_GT(n.Stats().evictions, 1000u);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(n.Read(pinned[i]), Bytes(Key(i), kSize));
    EXPECT_TRUE(n.Release(pinned[i]).ok());
  }
}

TEST_P(EvictionUnderPressure, FullOfPinnedBlocksIsSaidAndPasses) {
  TestNode n(Options(), 1 << 20);
  std::vector<kv::BlockLocation> pinned;
  absl::Status status;
  for (int i = 0; status.ok(); ++i) {
    status = n.Put(Item(Key(i)));
    if (status.ok()) pinned.push_back(*n.Pin(Key(i)));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(pinned.size(), 200u);
  ASSERT_TRUE(n.Release(pinned.back()).ok());
  EXPECT_TRUE(n.Put(Item(Key(100000))).ok());
}

TEST_P(EvictionUnderPressure, ChainsGoFromTheTail) {
  TestNode n(Options(), 1 << 20);
  std::vector<std::vector<BlockKey>> chains;
  for (int c = 0; c < 60; ++c) {
    chains.push_back(Chain(c, 20));
    ASSERT_TRUE(n.PutChain(chains.back(), kSize).ok());
    for (const auto& chain : chains) {  // what is left of a chain is a prefix of it
      bool gone = false;
      for (const BlockKey& key : chain) {
        const bool here = n.Exists(key);
        ASSERT_FALSE(gone && here);
        gone |= !here;
      }
    }
  }
  EXPECT_GT(n.Stats().evictions, 500u);
}

TEST_P(EvictionUnderPressure, AHitOnTheTailKeepsItsAncestors) {
  TestNode n(Options(), 1 << 20);
  const std::vector<BlockKey> hot = Chain(7, 10);
  ASSERT_TRUE(n.PutChain(hot, kSize).ok());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(n.Put(Item(Key(i))).ok());
    n.clock().Advance(std::chrono::milliseconds(1));
    if (i % 20 == 0) {
      ASSERT_TRUE(n.Get(hot.back()).has_value()) << i;
      ASSERT_TRUE(n.Get(hot.back()).has_value()) << i;
    }
  }
  EXPECT_EQ(n.Match(hot), hot.size());
}

TEST_P(EvictionUnderPressure, WatermarksAreKeptAheadOfNeed) {
  KvNodeOptions o = Options();
  o.high_watermark = 0.5;
  o.low_watermark = 0.25;
  TestNode n(o, 4 << 20);
  for (int i = 0; n.Stats().used_bytes < (3 << 20); ++i) ASSERT_TRUE(n.Put(Item(Key(i))).ok());
  EXPECT_EQ(n.Stats().evictions, 0u);
  n.node().Tick();
  EXPECT_LE(n.Stats().used_bytes, (4u << 20) / 4);
  EXPECT_GT(n.Stats().used_bytes, (4u << 20) / 5);
}

TEST_P(EvictionUnderPressure, MemoryFollowsTheSizesThatAreAskedFor) {
  TestNode n(Options(), 8 << 20);  // slabs of 1 MiB
  for (int i = 0; i < 4000; ++i) ASSERT_TRUE(n.Put(Item(Key(i))).ok());
  for (int round = 0; round < 200; ++round) {
    n.clock().Advance(seconds(1));
    ASSERT_TRUE(n.Put(Item(Key(100000 + round), {}, 200000)).ok()) << round;
  }
  // All large now, but for what fits into few slabs.
  EXPECT_GT(n.Stats().kind_bytes[0], 4u << 20);
  int large = 0;
  for (int round = 0; round < 200; ++round) large += n.Exists(Key(100000 + round));
  EXPECT_GT(large, 20);
  for (int round = 0; round < 200; ++round) {
    const auto bytes = n.Get(Key(100000 + round));
    if (bytes) {
      ASSERT_EQ(*bytes, Bytes(Key(100000 + round), 200000));
    }
  }
}

TEST(KvNodeEvictionTest, MovedBlocksKeepTheirBytes) {
  TestNode n({}, 2 << 20);  // two slabs
  std::vector<BlockKey> kept;
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(n.Put(Item(Key(i), {}, 8192)).ok());
  for (int i = 0; i < 200; ++i) {
    if (i % 5 == 0) {
      kept.push_back(Key(i));
    } else {
      ASSERT_TRUE(n.Erase(Key(i)).ok());
    }
  }
  ASSERT_TRUE(n.Put(Item(Key(1000), {}, 900000)).ok());
  EXPECT_EQ(n.Stats().evictions, 0u) << "a slab was emptied by moving";
  for (const BlockKey& key : kept) EXPECT_EQ(n.Get(key), Bytes(key, 8192));
  EXPECT_EQ(n.Get(Key(1000)), Bytes(Key(1000), 900000));
}

TEST(KvNodeEvictionTest, ParentsThatComeAfterTheirChildrenAreProtectedToo) {
  TestNode n;
  const std::vector<BlockKey> chain = Chain(3, 3);
  for (int i : {2, 1, 0})
    ASSERT_TRUE(n.Put(Item(chain[i], i == 0 ? BlockKey{} : chain[i - 1])).ok());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(n.Put(Item(Key(i))).ok());
    if (n.Exists(chain[2])) {
      ASSERT_TRUE(n.Exists(chain[1]));
    }
    if (n.Exists(chain[1])) {
      ASSERT_TRUE(n.Exists(chain[0]));
    }
  }
  EXPECT_FALSE(n.Exists(chain[2]));
}

TEST(KvNodeEvictionTest, ARingOfParentsIsRefused) {
  TestNode n;
  ASSERT_TRUE(n.Put(Item(Key(1), Key(3))).ok());
  ASSERT_TRUE(n.Put(Item(Key(2), Key(1))).ok());
  EXPECT_EQ(n.Put(Item(Key(3), Key(2))).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(n.Exists(Key(3)));
  EXPECT_EQ(n.Stats().reserved_bytes, 0u);
  ASSERT_TRUE(n.Erase(Key(2)).ok());
  ASSERT_TRUE(n.Erase(Key(1)).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

// --- Quota ---

TEST(KvNodeEvictionTest, ATenantPaysForItselfOnly) {
  KvNodeOptions o;
  o.tenant_quota_bytes = 256 << 10;
  TestNode n(o);
  const uint64_t greedy = n.Open("greedy", "greedy");
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(n.Put(Item(Key(i))).ok());
  for (int i = 1000; i < 2000; ++i) {
    ASSERT_TRUE(n.Put(Item(Key(i)), greedy).ok());
    ASSERT_LE(n.Stats().used_bytes, 50 * 4096u + (256 << 10));
  }
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(n.Exists(Key(i))) << i;
}

TEST(KvNodeEvictionTest, AQuotaFullOfPinnedBlocksIsSaid) {
  KvNodeOptions o;
  o.tenant_quota_bytes = 64 << 10;
  TestNode n(o);
  absl::Status status;
  for (int i = 0; status.ok(); ++i) {
    status = n.Put(Item(Key(i)));
    if (status.ok()) {
      ASSERT_TRUE(n.Pin(Key(i)).has_value());
    }
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("quota"), absl::string_view::npos);
  EXPECT_LE(n.Stats().used_bytes, 64u << 10);
}

TEST(KvNodeEvictionTest, TenantsAreBounded) {
  KvNodeOptions o;
  o.max_tenants = 3;
  TestNode n(o);
  EXPECT_NE(n.Open("a", "a"), 0u);
  EXPECT_NE(n.Open("b", "b"), 0u);
  EXPECT_EQ(n.Open("c", "c"), 0u);
  EXPECT_NE(n.Open("a again", "a"), 0u);
}

TEST(KvNodeEvictionTest, ALargerClassHelpsOutWhenNothingMayGo) {
  KvNodeOptions o;
  o.slab_bytes = 64 << 10;
  TestNode n(o, 64 << 10);  // one slab
  ASSERT_TRUE(n.Put(Item(Key(1), {}, 16 << 10)).ok());
  const auto pinned = n.Pin(Key(1));
  ASSERT_TRUE(pinned.has_value());
  ASSERT_TRUE(n.Put(Item(Key(2), {}, 8 << 10)).ok()) << "half of 16 KiB is better than no block";
  EXPECT_EQ(n.Get(Key(2)), Bytes(Key(2), 8 << 10));
  EXPECT_EQ(n.Stats().used_bytes, 32u << 10);
  const auto also_pinned = n.Pin(Key(2));
  EXPECT_EQ(n.Put(Item(Key(3), {}, 4 << 10)).code(), absl::StatusCode::kResourceExhausted)
      << "a quarter of one is waste";
  ASSERT_TRUE(n.Release(*also_pinned).ok());
  ASSERT_TRUE(n.Erase(Key(2)).ok());
  EXPECT_EQ(n.Stats().used_bytes, 16u << 10);
}

TEST(KvNodeEvictionTest, ALargerClassIsNoWayAroundTheQuota) {
  KvNodeOptions o;
  o.slab_bytes = 64 << 10;
  o.tenant_quota_bytes = 24 << 10;
  TestNode n(o, 64 << 10);
  ASSERT_TRUE(n.Put(Item(Key(1), {}, 16 << 10)).ok());
  ASSERT_TRUE(n.Pin(Key(1)).has_value());
  EXPECT_EQ(n.Put(Item(Key(2), {}, 8 << 10)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(n.Stats().used_bytes, 16u << 10);
}

TEST(KvNodeEvictionTest, ABatchBeyondTheRoomIsServedAsFarAsItGoes) {
  TestNode n({}, 1 << 20);
  kv::PutStartRequest request{n.session(), {}, 7};
  for (int i = 0; i < 300; ++i) request.items.push_back(Item(Key(i), {}, 8192));
  request.items.push_back(Item(Key(0), {}, 8192));  // twice in one call
  request.items.push_back(Item(Key(0), {}, 4096));
  request.items.push_back(Item(Key(299), {}, 8192));
  kv::PutStartResponse first, again;
  ASSERT_TRUE(n.node().Handle(request, &first).ok());
  int reserved = 0;
  for (int i = 0; i < 300; ++i) reserved += first.statuses[i].ok();
  EXPECT_EQ(reserved, 128);
  EXPECT_TRUE(first.statuses[127].ok());
  EXPECT_EQ(first.statuses[128].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(first.statuses[300].ok());
  EXPECT_EQ(first.generations[300], first.generations[0]);
  EXPECT_EQ(first.statuses[301].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(first.statuses[302].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(n.Stats().reserved_bytes, 1u << 20);
  ASSERT_TRUE(n.node().Handle(request, &again).ok());
  EXPECT_EQ(first.generations, again.generations) << "repeating it has the effect of one call";
  kv::PutRevokeResponse revoked;
  ASSERT_TRUE(
      n.node().Handle(kv::PutRevokeRequest{n.session(), first.generations, true}, &revoked).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

}  // namespace
}  // namespace oscarkv
