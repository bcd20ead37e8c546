#include "kvstore/cluster/placement.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "kvstore/client/client.h"
#include "kvstore/cluster/membership.h"
#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Chain;
using kvtest::Key;

std::vector<Member> Nodes(int n) {
  std::vector<Member> nodes(n);
  for (int i = 0; i < n; ++i) nodes[i].endpoint = absl::StrCat("10.0.0.", i, ":7301");
  return nodes;
}

TEST(PlacementTest, SpreadsEvenly) {
  const Placement p(Nodes(5));
  std::vector<int> count(5);
  for (int i = 0; i < 10000; ++i) ++count[p.OwnerOf(Key(i))];
  for (int c : count) EXPECT_NEAR(c, 2000, 200);
}

TEST(PlacementTest, ANodeThatLeavesMovesOnlyItsShare) {
  const std::vector<Member> all = Nodes(5), fewer(all.begin(), all.end() - 1);
  const Placement before(all), after(fewer);
  for (int i = 0; i < 2000; ++i) {
    const size_t owner = before.OwnerOf(Key(i));
    if (owner != 4) {
      EXPECT_EQ(after.OwnerOf(Key(i)), owner);
    }
  }
}

TEST(PlacementTest, OwnersArePartOfTheWireContract) {
  // Clients of different builds must agree: these owners must never change.
  const Placement p(Nodes(7));
  std::string owners;
  for (int i = 0; i < 16; ++i) absl::StrAppend(&owners, p.OwnerOf(Key(i)));
  EXPECT_EQ(owners, "5463525004434556");
}

TEST(PlacementTest, ARunOfSixteenBlocksStaysTogether) {
  const std::vector<BlockKey> chain = Chain(1, 40);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(PlacementOf(chain, i), chain[i / 16 * 16]);
}

TEST(MembershipTest, OrderAndRepetitionDoNotMatter) {
  const auto a = *StaticMembership::Parse({"b:1@east/2.5", "a:1", "b:1@east/2.5"}),
             b = *StaticMembership::Parse({"a:1", "b:1@east/2.5"});
  ASSERT_EQ(a->Current()->members.size(), 2u);
  EXPECT_EQ(a->Current()->members[0], Member{.endpoint = "a:1"});
  EXPECT_EQ(a->Current()->members[1], (Member{.endpoint = "b:1", .zone = "east", .weight = 2.5}));
  EXPECT_EQ(a->Current()->members, b->Current()->members);
  EXPECT_EQ(a->Current()->revision, 1u);
}

TEST(MembershipTest, WrongNodesAreNamed) {
  for (const char* wrong :
       {"", "@east", "a:1@", "a:1/", "a:1/0", "a:1/-1", "a:1/x", "a:1/nan", "a:1/1e9"}) {
    const auto parsed = ParseMember(wrong);
    ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_NE(parsed.status().message().find(wrong), std::string::npos) << parsed.status();
  }
  EXPECT_EQ(StaticMembership::Parse({"a:1@x", "a:1@y"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PlacementTest, ReplicasAreInDifferentZones) {
  std::vector<Member> nodes = Nodes(9);
  for (int i = 0; i < 9; ++i) nodes[i].zone = std::string(1, static_cast<char>('a' + i % 3));
  const Placement p(nodes);
  std::vector<uint32_t> order;
  for (int k = 0; k < 500; ++k) {
    p.Order(Key(k), 20, &order);
    ASSERT_EQ(order.size(), 9u);
    for (int i = 0; i < 9; ++i) {
      for (int j = 0; j < i; ++j) {
        EXPECT_NE(order[i], order[j]);
        if (i / 3 == j / 3) {
          EXPECT_NE(nodes[order[i]].zone, nodes[order[j]].zone) << "key " << k;
        }
      }
    }
  }
}

TEST(PlacementTest, WeightsAreShares) {
  std::vector<Member> nodes = Nodes(4);
  for (int i = 0; i < 4; ++i) nodes[i].weight = i + 1;
  const Placement p(nodes);
  std::vector<int> count(4);
  for (int i = 0; i < 20000; ++i) ++count[p.OwnerOf(Key(i))];
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(count[i], 2000 * (i + 1), 300);
  // A node that gets heavier only gains.
  std::vector<Member> more = nodes;
  more[1].weight = 5;
  const Placement q(more);
  for (int i = 0; i < 2000; ++i) {
    if (q.OwnerOf(Key(i)) != p.OwnerOf(Key(i))) {
      EXPECT_EQ(q.OwnerOf(Key(i)), 1u);
    }
  }
}

}  // namespace
}  // namespace oscarkv
