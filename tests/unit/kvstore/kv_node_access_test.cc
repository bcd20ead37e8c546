// What a session may touch over the data path, when each access is asked for.
#include <gtest/gtest.h>

#include "kvstore/core/access_map.h"
#include "tests/unit/kvstore/support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Key;
using kvtest::Table;
using kvtest::TestNode;
using std::chrono::seconds;

constexpr uint64_t kSize = 5000;

KvNodeOptions WithGrants() {
  KvNodeOptions options;
  options.grants = true;
  return options;
}

class NodeAccessTest : public testing::Test {
 protected:
  bool Reads(uint64_t session, uint64_t offset, uint64_t length = kSize) {
    return n_.node().MayTouch(session, /*write=*/false, offset, length);
  }
  bool Writes(uint64_t session, uint64_t offset, uint64_t length = kSize) {
    return n_.node().MayTouch(session, /*write=*/true, offset, length);
  }
  bool Nothing(uint64_t session, uint64_t offset) {
    return !Reads(session, offset, 1) && !Writes(session, offset, 1);
  }
  TestNode n_{WithGrants()};
  const uint64_t mine_ = n_.session(), other_ = n_.Open("other");
};

TEST_F(NodeAccessTest, APinnedBlockMayBeReadItsBytesOnly) {
  ASSERT_TRUE(n_.Put({Key(1), {}, BlockKind::kPage, kSize}).ok());
  const auto location = *n_.Pin(Key(1));
  const uint64_t at = location.offset;
  EXPECT_TRUE(Reads(mine_, at));
  EXPECT_TRUE(Reads(mine_, at + 100, kSize - 100));
  EXPECT_TRUE(Reads(mine_, at + kSize, 0));
  EXPECT_FALSE(Reads(mine_, at, kSize + 1));
  EXPECT_FALSE(Reads(mine_, at + 1, kSize));
  EXPECT_FALSE(Reads(mine_, at + kSize, 1)) << "the rest of its slot";
  EXPECT_FALSE(Reads(mine_, at + 8, ~uint64_t{0})) << "overflow";
  EXPECT_FALSE(Reads(mine_, ~uint64_t{0}, 2));
  EXPECT_FALSE(Writes(mine_, at, 1)) << "it is committed";
  EXPECT_TRUE(Nothing(other_, at));
  EXPECT_TRUE(Nothing(12345, at)) << "no such session";
  // Twice pinned, once released: still there.
  const auto again = *n_.Pin(Key(1));
  EXPECT_TRUE(n_.Release(location).ok());
  EXPECT_TRUE(Reads(mine_, at));
  EXPECT_FALSE(n_.Release(location).ok()) << "a pin is released once";
  EXPECT_TRUE(Reads(mine_, at));
  EXPECT_TRUE(n_.Release(again).ok());
  EXPECT_TRUE(Nothing(mine_, at));
}

TEST_F(NodeAccessTest, AReservationMayBeWrittenUntilItIsChecked) {
  const auto place = n_.Start({Key(1), {}, BlockKind::kPage, kSize});
  ASSERT_TRUE(place.status.ok());
  const uint64_t at = place.offset;
  EXPECT_TRUE(Writes(mine_, at));
  EXPECT_FALSE(Writes(mine_, at, kSize + 1));
  EXPECT_FALSE(Reads(mine_, at, 1)) << "what was there before is not for its writer";
  EXPECT_TRUE(Nothing(other_, at));
  // Wrong checksums: the writer may correct it.
  const std::string bytes = Bytes(Key(1), kSize);
  EXPECT_FALSE(n_.End(Key(1), place.generation, Table(Bytes(Key(2), kSize))).ok());
  EXPECT_TRUE(Writes(mine_, at));
  n_.WriteArena(at, bytes);
  ASSERT_TRUE(n_.End(Key(1), place.generation, Table(bytes)).ok());
  EXPECT_TRUE(Nothing(mine_, at)) << "stored, and not pinned";
}

TEST_F(NodeAccessTest, WhatEndsTakesTheRightAlong) {
  ASSERT_TRUE(n_.Put({Key(1), {}, BlockKind::kPage, kSize}).ok());
  const auto location = *n_.Pin(Key(1), 0, seconds(5));
  const auto revoked = n_.Start({Key(2), {}, BlockKind::kPage, kSize});
  const auto late = n_.Start({Key(3), {}, BlockKind::kPage, kSize});
  const auto others = n_.Start({Key(4), {}, BlockKind::kPage, kSize}, other_);
  ASSERT_TRUE(n_.Revoke(revoked.generation, /*drained=*/false).ok());
  EXPECT_FALSE(Writes(mine_, revoked.offset)) << "though it rests in quarantine";
  EXPECT_TRUE(Writes(mine_, late.offset));
  n_.Pass(seconds(6));
  EXPECT_FALSE(Reads(mine_, location.offset)) << "the pin ran out";
  n_.Pass(seconds(60), {other_});
  EXPECT_FALSE(Writes(mine_, late.offset)) << "the reservation ran out";
  const auto mine = n_.Start({Key(5), {}, BlockKind::kPage, kSize}, other_);
  EXPECT_TRUE(Writes(other_, mine.offset));
  n_.Pass(seconds(30));
  EXPECT_FALSE(Writes(other_, mine.offset)) << "the session ran out";
  EXPECT_FALSE(Writes(other_, others.offset));
  kv::CloseSessionResponse closed;
  ASSERT_TRUE(n_.Pin(Key(1)).has_value());
  ASSERT_TRUE(Reads(mine_, location.offset));
  ASSERT_TRUE(n_.node().Handle(kv::CloseSessionRequest{mine_}, &closed).ok());
  EXPECT_FALSE(Reads(mine_, location.offset));
}

TEST(AccessMap, RangesAreApart) {
  AccessMap map;
  EXPECT_FALSE(map.Covers(0, 0));
  map.Add(100, 50);
  map.Add(200, 50);
  map.Remove(300);
  EXPECT_TRUE(map.Covers(100, 50));
  EXPECT_TRUE(map.Covers(149, 1));
  EXPECT_FALSE(map.Covers(99, 2));
  EXPECT_FALSE(map.Covers(140, 70)) << "not over the gap";
  map.Remove(100);
  map.Remove(100);
  EXPECT_FALSE(map.Covers(100, 1));
  EXPECT_TRUE(map.Covers(200, 50));
}

}  // namespace
}  // namespace oscarkv
