// A node's promises one by one, under a fake clock.
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

TEST(KvNodeTest, ABlockIsVisibleOnlyAfterPutEnd) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto place = n.Start(Item(key));
  ASSERT_TRUE(place.status.ok()) << place.status;
  EXPECT_FALSE(n.Exists(key));
  EXPECT_EQ(n.Match({key}), 0u);
  EXPECT_FALSE(n.Pin(key).has_value());
  EXPECT_GT(n.Stats().reserved_bytes, 0u);
  const std::string bytes = Bytes(key, kSize);
  n.WriteArena(place.offset, bytes);
  ASSERT_TRUE(n.End(key, place.generation, Table(bytes)).ok());
  EXPECT_EQ(n.Match({key}), 1u);
  EXPECT_EQ(n.Get(key), bytes);
  EXPECT_EQ(n.Stats().reserved_bytes, 0u);
  EXPECT_EQ(n.Stats().kind_blocks[0], 1u);
  EXPECT_EQ(n.Stats().kind_bytes[0], kSize);
}

TEST(KvNodeTest, RepeatedCallsHaveTheEffectOfOne) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto first = n.Start(Item(key)), again = n.Start(Item(key));
  EXPECT_EQ(first.offset, again.offset);
  EXPECT_EQ(first.generation, again.generation);
  const uint64_t used = n.Stats().used_bytes;
  const std::string bytes = Bytes(key, kSize);
  n.WriteArena(first.offset, bytes);
  EXPECT_TRUE(n.End(key, first.generation, Table(bytes)).ok());
  EXPECT_TRUE(n.End(key, first.generation, Table(bytes)).ok());
  EXPECT_EQ(n.Start(Item(key)).status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(n.Revoke(first.generation, true).ok()) << "of a committed block: nothing happens";
  EXPECT_TRUE(n.Exists(key));
  EXPECT_EQ(n.Stats().used_bytes, used);
}

TEST(KvNodeTest, ARetryThatDiffersIsRefused) {
  TestNode n;
  ASSERT_TRUE(n.Start(Item(Key(1))).status.ok());
  EXPECT_EQ(n.Start(Item(Key(1), {}, kSize + 1)).status.code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(KvNodeTest, TwoWritersOfABlock) {
  TestNode n;
  const uint64_t other = n.Open("other");
  const BlockKey key = Key(1);
  const auto mine = n.Start(Item(key)), theirs = n.Start(Item(key), other);
  EXPECT_NE(mine.offset, theirs.offset);
  const std::string bytes = Bytes(key, kSize);
  n.WriteArena(mine.offset, bytes);
  n.WriteArena(theirs.offset, bytes);
  EXPECT_TRUE(n.End(key, theirs.generation, Table(bytes), other).ok());
  EXPECT_TRUE(n.End(key, mine.generation, Table(bytes)).ok());
  EXPECT_EQ(n.Stats().kind_blocks[0], 1u);
  EXPECT_EQ(n.Stats().reserved_bytes, 0u);
  ASSERT_TRUE(n.Erase(key).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u) << "the loser's memory came back";
}

TEST(KvNodeTest, TwoPutsOfOneSessionDoNotShareMemory) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto one = n.Start(Item(key), 0, /*put_id=*/1), two = n.Start(Item(key), 0, /*put_id=*/2);
  ASSERT_TRUE(one.status.ok() && two.status.ok());
  EXPECT_NE(one.offset, two.offset);
  ASSERT_TRUE(n.Revoke(one.generation, true).ok());
  const std::string bytes = Bytes(key, kSize);
  n.WriteArena(two.offset, bytes);
  EXPECT_TRUE(n.End(key, two.generation, Table(bytes)).ok());
}

TEST(KvNodeTest, SliceTablesMustCoverTheBlock) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto place = n.Start(Item(key));
  const std::string bytes = Bytes(key, kSize);
  n.WriteArena(place.offset, bytes);
  const struct {
    const char* name;
    kv::SliceTable table;
  } kBad[] = {
      {"empty", {}},
      {"short", {{kSize - 1}, {0}}},
      {"long", {{kSize, 1}, {0, 0}}},
      {"wraps around", {{UINT64_MAX, kSize + 1}, {0, 0}}},
      {"empty slice", {{0, kSize}, {0, 0}}},
      {"without checksum", {{1000, 2000}, {0}}},
  };
  for (const auto& bad : kBad) {
    EXPECT_EQ(n.End(key, place.generation, bad.table).code(), absl::StatusCode::kInvalidArgument)
        << bad.name;
    EXPECT_FALSE(n.Exists(key)) << bad.name;
  }
  EXPECT_TRUE(n.End(key, place.generation, Table(bytes)).ok())
      << "the writer may correct its table";
}

TEST(KvNodeTest, WrongBytesAreNotStored) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto place = n.Start(Item(key));
  std::string bytes = Bytes(key, kSize);
  const kv::SliceTable table = Table(bytes);
  bytes[1500] ^= 1;
  n.WriteArena(place.offset, bytes);
  EXPECT_EQ(n.End(key, place.generation, table).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(n.Exists(key));
  n.WriteArena(place.offset, Bytes(key, kSize));  // written once more
  EXPECT_TRUE(n.End(key, place.generation, table).ok());
}

TEST(KvNodeTest, ItemsThatMakeNoSense) {
  TestNode n;
  const BlockKey key = Key(1);
  EXPECT_EQ(n.Start(Item({})).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(n.Start(Item(key, key)).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(n.Start(Item(key, {}, 0)).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(n.Start(Item(key, {}, uint64_t{1} << 40)).status.code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(n.Start({key, {}, static_cast<BlockKind>(9), kSize}).status.code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

TEST(KvNodeTest, UnknownSessionsAreTold) {
  TestNode n;
  kv::MatchPrefixResponse match;
  EXPECT_EQ(n.node().Handle(kv::MatchPrefixRequest{42, {Key(1)}}, &match).code(),
            absl::StatusCode::kUnauthenticated);
  kv::KeepAliveResponse alive;
  EXPECT_EQ(n.node().Handle(kv::KeepAliveRequest{42}, &alive).code(),
            absl::StatusCode::kUnauthenticated);
}

// --- Pins ---

TEST(KvNodeTest, AnErasedBlockLivesOnForItsReaders) {
  TestNode n;
  const BlockKey key = Key(1);
  ASSERT_TRUE(n.Put(Item(key)).ok());
  const auto pinned = n.Pin(key);
  ASSERT_TRUE(n.Erase(key).ok());
  EXPECT_FALSE(n.Exists(key));
  ASSERT_TRUE(n.Put(Item(key)).ok()) << "the name is free for a new copy";
  EXPECT_EQ(n.Read(*pinned), Bytes(key, kSize));
  EXPECT_TRUE(n.Release(*pinned).ok()) << "the pin held";
  EXPECT_EQ(n.Stats().kind_blocks[0], 1u);
  ASSERT_TRUE(n.Erase(key).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

TEST(KvNodeTest, APinEndsWithItsTimeAndTheReaderIsTold) {
  TestNode n;
  const BlockKey key = Key(1);
  ASSERT_TRUE(n.Put(Item(key)).ok());
  const auto pinned = n.Pin(key, 0, seconds(5));
  n.Pass(seconds(4));
  kv::RenewPinsResponse renewed;
  ASSERT_TRUE(
      n.node()
          .Handle(kv::RenewPinsRequest{n.session(), {pinned->pin_id, 999}, seconds(5)}, &renewed)
          .ok());
  EXPECT_TRUE(renewed.statuses[0].ok());
  EXPECT_EQ(renewed.statuses[1].code(), absl::StatusCode::kAborted);
  n.Pass(seconds(4));
  EXPECT_EQ(n.Stats().pinned_bytes, kSize);
  n.Pass(seconds(2));
  EXPECT_EQ(n.Stats().pinned_bytes, 0u);
  EXPECT_EQ(n.Release(*pinned).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(n.Exists(key));
}

TEST(KvNodeTest, AStaleGenerationIsNotReleasedAsGood) {
  TestNode n;
  ASSERT_TRUE(n.Put(Item(Key(1))).ok());
  auto pinned = *n.Pin(Key(1));
  ++pinned.generation;
  EXPECT_EQ(n.Release(pinned).code(), absl::StatusCode::kAborted);
}

TEST(KvNodeTest, GenerationsDifferAfterReuse) {
  TestNode n;
  ASSERT_TRUE(n.Put(Item(Key(1))).ok());
  const auto first = *n.Pin(Key(1));
  ASSERT_TRUE(n.Release(first).ok());
  ASSERT_TRUE(n.Erase(Key(1)).ok());
  ASSERT_TRUE(n.Put(Item(Key(2))).ok());
  const auto second = *n.Pin(Key(2));
  EXPECT_EQ(first.offset, second.offset) << "the memory was used again";
  EXPECT_NE(first.generation, second.generation);
}

TEST(KvNodeTest, PinsAreCapped) {
  KvNodeOptions o;
  o.max_pins_per_session = 2;
  TestNode n(o);
  ASSERT_TRUE(n.Put(Item(Key(1))).ok());
  ASSERT_TRUE(n.Pin(Key(1)) && n.Pin(Key(1)));
  kv::GetStartResponse response;
  EXPECT_EQ(n.node().Handle(kv::GetStartRequest{n.session(), {Key(1)}, {}}, &response).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(KvNodeTest, TheDeathOfASessionReleasesItsPins) {
  TestNode n;
  const uint64_t other = n.Open("other");
  ASSERT_TRUE(n.Put(Item(Key(1))).ok());
  const auto pinned = n.Pin(Key(1), other);
  n.Pass(seconds(20));  // keeps only its own session alive
  EXPECT_EQ(n.Stats().sessions, 1u);
  EXPECT_EQ(n.Stats().pinned_bytes, 0u);
  EXPECT_EQ(n.Release(*pinned, other).code(), absl::StatusCode::kUnauthenticated);
}

// --- Abandoned puts ---

TEST(KvNodeTest, ALateWriteNeverLandsInANewOwner) {
  KvNodeOptions o;
  o.put_ttl = seconds(60);
  o.session_ttl = seconds(1000);
  TestNode n(o);
  const BlockKey key = Key(1);
  const auto late = n.Start(Item(key));
  n.Pass(seconds(61));
  EXPECT_EQ(n.Stats().reserved_bytes, 0u);
  EXPECT_GT(n.Stats().quarantined_bytes, 0u);
  const auto next = n.Start(Item(Key(2)));
  EXPECT_NE(next.offset, late.offset);
  n.WriteArena(next.offset, Bytes(Key(2), kSize));
  n.WriteArena(late.offset, std::string(kSize, 'X'));  // the write that came late
  ASSERT_TRUE(n.End(Key(2), next.generation, Table(Bytes(Key(2), kSize))).ok());
  EXPECT_EQ(n.Get(Key(2)), Bytes(Key(2), kSize));
  EXPECT_EQ(n.End(key, late.generation, Table(Bytes(key, kSize))).code(),
            absl::StatusCode::kNotFound);
  n.Pass(seconds(60));  // twice the TTL after the start
  EXPECT_EQ(n.Stats().quarantined_bytes, 0u);
  EXPECT_EQ(n.Start(Item(Key(3))).offset, late.offset);
}

TEST(KvNodeTest, RevokingSaysWhetherWritesMayBeUnderWay) {
  TestNode n;
  const auto one = n.Start(Item(Key(1))), two = n.Start(Item(Key(2)));
  ASSERT_TRUE(one.status.ok() && two.status.ok());
  ASSERT_TRUE(n.Revoke(one.generation, /*drained=*/true).ok());
  EXPECT_EQ(n.Stats().quarantined_bytes, 0u);
  ASSERT_TRUE(n.Revoke(two.generation, /*drained=*/false).ok());
  EXPECT_GT(n.Stats().quarantined_bytes, 0u);
  EXPECT_EQ(n.Stats().reserved_bytes, 0u);
  n.Pass(seconds(121));
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

TEST(KvNodeTest, ClosingASessionFreesItsQuarantineExpiringItDoesNot) {
  TestNode n;
  const uint64_t closing = n.Open("closing"), dying = n.Open("dying");
  const auto revoked = n.Start(Item(Key(1)), closing);
  ASSERT_TRUE(revoked.status.ok());
  ASSERT_TRUE(n.Start(Item(Key(2)), closing).status.ok());
  ASSERT_TRUE(n.Revoke(revoked.generation, /*drained=*/false, closing).ok());
  kv::CloseSessionResponse closed;
  ASSERT_TRUE(n.node().Handle(kv::CloseSessionRequest{closing}, &closed).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u);
  ASSERT_TRUE(n.Start(Item(Key(3)), dying).status.ok());
  n.Pass(seconds(20));
  EXPECT_EQ(n.Stats().sessions, 1u);
  EXPECT_GT(n.Stats().quarantined_bytes, 0u) << "the process may only have been stopped";
  ASSERT_TRUE(n.node().Handle(kv::CloseSessionRequest{dying}, &closed).ok())
      << "it says that its connection is closed";
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

// --- TTL ---

TEST(KvNodeTest, HandoverBlocksExpire) {
  TestNode n;
  const kv::PutItem item{Key(1), {}, BlockKind::kHandover, kSize, seconds(10)};
  ASSERT_TRUE(n.Put(item).ok());
  n.Pass(seconds(9));
  EXPECT_TRUE(n.Exists(Key(1)));
  EXPECT_EQ(n.Put(item).code(), absl::StatusCode::kAlreadyExists)
      << "and lives ten seconds from now";
  n.Pass(seconds(9));
  const auto pinned = n.Pin(Key(1));
  ASSERT_TRUE(pinned.has_value());
  n.Pass(seconds(2));
  EXPECT_FALSE(n.Exists(Key(1)));
  EXPECT_EQ(n.Read(*pinned), Bytes(Key(1), kSize));
  EXPECT_TRUE(n.Release(*pinned).ok());
  EXPECT_EQ(n.Stats().used_bytes, 0u);
  EXPECT_TRUE(n.Put(item).ok());
}

TEST(KvNodeTest, AnExpiredBlockIsGoneBeforeTheSweep) {
  TestNode n;
  const kv::PutItem item{Key(1), {}, BlockKind::kHandover, kSize, seconds(1)};
  ASSERT_TRUE(n.Put(item).ok());
  n.clock().Advance(seconds(1));
  EXPECT_FALSE(n.Exists(Key(1)));
  EXPECT_EQ(n.Match({Key(1)}), 0u);
  EXPECT_TRUE(n.Put(item).ok()) << "replaces it";
  EXPECT_EQ(n.Stats().kind_blocks[2], 1u);
  n.Pass(seconds(2));
  EXPECT_EQ(n.Stats().used_bytes, 0u);
}

// --- Lookups ---

TEST(KvNodeTest, MatchTakesTheLongestUnbrokenRun) {
  TestNode n;
  const std::vector<BlockKey> chain = Chain(1, 6);
  ASSERT_TRUE(n.PutChain({chain[0], chain[1], chain[2]}, kSize).ok());
  ASSERT_TRUE(n.Put(Item(chain[4], chain[3])).ok());
  EXPECT_EQ(n.Match(chain), 3u);
  EXPECT_EQ(n.Stats().hits, 3u);
  EXPECT_EQ(n.Stats().misses, 3u);
  EXPECT_EQ(n.Match({}), 0u);
}

TEST(KvNodeTest, AReportedBlockIsErased) {
  TestNode n;
  ASSERT_TRUE(n.Put(Item(Key(1))).ok());
  const auto location = *n.Pin(Key(1));
  n.arena()[location.offset + 5] ^= 0x40;
  ASSERT_TRUE(n.Release(location).ok());
  kv::EraseResponse response;
  kv::EraseRequest request{
      n.session(), {Key(1)}, kv::EraseReason::kCorrupt, {location.generation + 1}};
  ASSERT_TRUE(n.node().Handle(request, &response).ok());
  EXPECT_EQ(response.statuses[0].code(), absl::StatusCode::kNotFound)
      << "another copy than the one reported";
  EXPECT_TRUE(n.Exists(Key(1)));
  request.generations = {location.generation};
  ASSERT_TRUE(n.node().Handle(request, &response).ok());
  EXPECT_TRUE(response.statuses[0].ok());
  EXPECT_FALSE(n.Exists(Key(1)));
}

TEST(KvNodeTest, StreamedReadsAndWritesStayInTheirBlock) {
  TestNode n;
  const BlockKey key = Key(1);
  const auto place = n.Start(Item(key));
  const std::string bytes = Bytes(key, kSize);
  const auto span =
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  KvNode& node = n.node();
  ASSERT_TRUE(
      node.WriteReserved(n.session(), {key, place.generation, 0}, span.subspan(0, 1000)).ok());
  ASSERT_TRUE(
      node.WriteReserved(n.session(), {key, place.generation, 1000}, span.subspan(1000)).ok());
  EXPECT_EQ(node.WriteReserved(n.session(), {key, place.generation, 1}, span).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(node.WriteReserved(n.session(), {key, place.generation, UINT64_MAX}, span).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(node.WriteReserved(n.session(), {key, place.generation + 1, 0}, span).code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(n.End(key, place.generation, Table(bytes)).ok());
  EXPECT_EQ(node.WriteReserved(n.session(), {key, place.generation, 0}, span).code(),
            absl::StatusCode::kNotFound);
  const auto location = *n.Pin(key);
  std::string out(kSize, '\0');
  uint8_t* data = reinterpret_cast<uint8_t*>(out.data());
  ASSERT_TRUE(node.ReadPinned(n.session(), {location.pin_id, 100, kSize - 100}, data + 100).ok());
  EXPECT_EQ(out.substr(100), bytes.substr(100));
  EXPECT_EQ(node.ReadPinned(n.session(), {location.pin_id, 1, kSize}, data).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(node.ReadPinned(n.session(), {location.pin_id, UINT64_MAX, 2}, data).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(node.ReadPinned(n.session(), {location.pin_id + 1, 0, 1}, data).code(),
            absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace oscarkv
