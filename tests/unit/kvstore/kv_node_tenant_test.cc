// Tenants at a node: equal keys, separate blocks. A key that leaked opens nothing.
#include <gtest/gtest.h>

#include "kvstore/core/kv_node.h"
#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Chain;
using kvtest::Key;
using kvtest::Table;
using kvtest::TestNode;

constexpr uint64_t kSize = 3000;

class TenantTest : public testing::Test {
 protected:
  size_t Match(uint64_t session, const std::vector<BlockKey>& keys) {
    kv::MatchPrefixResponse r;
    EXPECT_TRUE(n_.node().Handle(kv::MatchPrefixRequest{session, keys}, &r).ok());
    return r.matched;
  }
  bool Exists(uint64_t session, const BlockKey& key) {
    kv::ExistsResponse r;
    EXPECT_TRUE(n_.node().Handle(kv::ExistsRequest{session, {key}}, &r).ok());
    return r.stored[0];
  }
  absl::Status Erase(uint64_t session, const BlockKey& key, kv::EraseReason reason,
                     std::vector<uint64_t> generations = {}) {
    kv::EraseResponse r;
    EXPECT_TRUE(n_.node().Handle(kv::EraseRequest{session, {key}, reason, generations}, &r).ok());
    return r.statuses[0];
  }
  // A put of bytes that do not follow from the key.
  absl::Status PutBytes(uint64_t session, const BlockKey& key, const std::string& bytes) {
    const auto place = n_.Start({key, {}, BlockKind::kPage, bytes.size()}, session);
    if (!place.status.ok()) return place.status;
    n_.WriteArena(place.offset, bytes);
    return n_.End(key, place.generation, Table(bytes), session);
  }
  std::string Read(uint64_t session, const BlockKey& key) {
    const auto location = n_.Pin(key, session);
    if (!location) return "not stored";
    const std::string bytes = n_.Read(*location);
    EXPECT_TRUE(n_.Release(*location, session).ok());
    return bytes;
  }

  TestNode n_;
  const uint64_t a_ = n_.Open("one of A", "A"), a2_ = n_.Open("another of A", "A"),
                 b_ = n_.Open("one of B", "B");
};

TEST_F(TenantTest, ABlockIsSeenByItsTenantOnly) {
  const std::vector<BlockKey> chain = Chain(1, 3);
  ASSERT_TRUE(n_.PutChain(chain, kSize, a_).ok());
  EXPECT_EQ(Match(a_, chain), 3u);
  EXPECT_EQ(Match(a2_, chain), 3u) << "sessions of one tenant share";
  EXPECT_EQ(Match(b_, chain), 0u);
  EXPECT_EQ(Match(n_.session(), chain), 0u) << "the default tenant is one like the others";
  EXPECT_TRUE(Exists(a2_, chain[1]));
  EXPECT_FALSE(Exists(b_, chain[1]));
  EXPECT_EQ(Read(a2_, chain[1]), Bytes(chain[1], kSize));
  EXPECT_FALSE(n_.Pin(chain[1], b_).has_value());
}

TEST_F(TenantTest, NobodyErasesAnothersBlock) {
  ASSERT_TRUE(n_.Put({Key(1), {}, BlockKind::kPage, kSize}, a_).ok());
  const auto location = *n_.Pin(Key(1), a_);
  for (const auto reason : {kv::EraseReason::kRequested, kv::EraseReason::kCorrupt}) {
    EXPECT_EQ(Erase(b_, Key(1), reason).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(Erase(b_, Key(1), reason, {location.generation}).code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(n_.Release(location, b_).code(), absl::StatusCode::kAborted)
      << "pins belong to sessions";
  EXPECT_TRUE(n_.Release(location, a_).ok());
  EXPECT_TRUE(Erase(a2_, Key(1), kv::EraseReason::kRequested).ok());
  EXPECT_FALSE(Exists(a_, Key(1)));
}

TEST_F(TenantTest, EqualKeysAreTwoBlocks) {
  const std::string mine = Bytes(Key(100), kSize), theirs = Bytes(Key(200), kSize);
  ASSERT_TRUE(PutBytes(a_, Key(1), mine).ok());
  ASSERT_TRUE(PutBytes(b_, Key(1), theirs).ok()) << "not ALREADY_EXISTS: that would tell";
  EXPECT_EQ(Read(a_, Key(1)), mine);
  EXPECT_EQ(Read(b_, Key(1)), theirs);
  EXPECT_EQ(n_.Stats().kind_blocks[0], 2u);
  ASSERT_TRUE(Erase(b_, Key(1), kv::EraseReason::kRequested).ok());
  EXPECT_EQ(Read(a_, Key(1)), mine);
  ASSERT_TRUE(Erase(a_, Key(1), kv::EraseReason::kRequested).ok());
  EXPECT_EQ(n_.Stats().used_bytes, 0u);
}

TEST_F(TenantTest, AChildOfAnotherTenantProtectsNothing) {
  ASSERT_TRUE(n_.Put({Key(1), {}, BlockKind::kPage, kSize}, a_).ok());
  ASSERT_TRUE(n_.Put({Key(2), Key(1), BlockKind::kPage, kSize}, b_).ok());
  for (int i = 1000; i < 2000; ++i)
    ASSERT_TRUE(n_.Put({Key(i), {}, BlockKind::kPage, kSize}, a_).ok());
  EXPECT_FALSE(Exists(a_, Key(1))) << "evicted although B names it as a parent";
}

TEST_F(TenantTest, BlocksThatMoveStayTheirTenants) {
  // Two slabs in turns; then all but a few of A go, and the large block empties a slab by moving.
  TestNode n({}, 2 << 20);
  const uint64_t a = n.Open("A", "A"), b = n.Open("B", "B");
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(n.Put({Key(i), {}, BlockKind::kPage, 8192}, a).ok());
    ASSERT_TRUE(n.Put({Key(i), {}, BlockKind::kPage, 8192}, b).ok());
  }
  for (int i = 0; i < 100; ++i) {
    if (i % 5 == 0) continue;
    for (uint64_t session : {a, b}) {
      kv::EraseResponse r;
      ASSERT_TRUE(
          n.node()
              .Handle(kv::EraseRequest{session, {Key(i)}, kv::EraseReason::kRequested, {}}, &r)
              .ok());
      ASSERT_TRUE(r.statuses[0].ok());
    }
  }
  ASSERT_TRUE(n.Put({Key(1000), {}, BlockKind::kPage, 900000}, a).ok());
  EXPECT_EQ(n.Stats().evictions, 0u);
  for (int i = 0; i < 100; i += 5) {
    for (uint64_t session : {a, b}) {
      const auto location = n.Pin(Key(i), session);
      ASSERT_TRUE(location.has_value());
      EXPECT_EQ(n.Read(*location), Bytes(Key(i), 8192));
    }
  }
}

}  // namespace
}  // namespace oscarkv
