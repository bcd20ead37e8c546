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

std::vector<std::string> Nodes(int n) {
  std::vector<std::string> nodes;
  for (int i = 0; i < n; ++i) nodes.push_back(absl::StrCat("10.0.0.", i, ":7301"));
  return nodes;
}

TEST(PlacementTest, SpreadsEvenly) {
  const Placement p(Nodes(5));
  std::vector<int> count(5);
  for (int i = 0; i < 10000; ++i) ++count[p.OwnerOf(Key(i))];
  for (int c : count) EXPECT_NEAR(c, 2000, 200);
}

TEST(PlacementTest, ANodeThatLeavesMovesOnlyItsShare) {
  const std::vector<std::string> all = Nodes(5), fewer(all.begin(), all.end() - 1);
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
  const StaticMembership a({"b:1", "a:1", "b:1"}), b({"a:1", "b:1"});
  EXPECT_EQ(a.Current()->nodes, (std::vector<std::string>{"a:1", "b:1"}));
  EXPECT_EQ(a.Current()->nodes, b.Current()->nodes);
  EXPECT_EQ(a.Current()->revision, 1u);
}

}  // namespace
}  // namespace oscarkv
