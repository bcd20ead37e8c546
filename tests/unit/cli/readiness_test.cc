#include "cli/readiness.h"

#include <gtest/gtest.h>

#include <functional>

namespace oscarkv::cli {
namespace {

using std::chrono::seconds;

// Three nodes that compared their blocks a second ago, and a worker of each role.
v1::GetStatusResponse Whole() {
  v1::GetStatusResponse s;
  s.set_replicas(2);
  for (const char* endpoint : {"a:1", "b:1", "c:1"}) {
    v1::StoreNodeStatus* n = s.add_nodes();
    n->set_endpoint(endpoint);
    n->set_reachable(true);
    n->set_knows_peers(true);
    n->set_compared_ms_ago(1000);
    n->set_no_room_copies(7);  // wanted so
  }
  for (const char* role : {"prefill", "attention"}) {
    v1::WorkerStatus* w = s.add_workers();
    w->set_endpoint(std::string(role) + ":2");
    w->set_reachable(true);
    w->mutable_info()->set_role(role);
  }
  return s;
}

TEST(MissingForWhole, OfAWholeClusterIsNothing) {
  EXPECT_EQ(MissingForWhole(Whole(), seconds(2)), "");
  EXPECT_EQ(MissingForWhole(Whole(), seconds(0)), "");
}

TEST(MissingForWhole, NamesWhatIsMissing) {
  const struct {
    std::function<void(v1::GetStatusResponse*)> change;
    const char* missing;
  } cases[] = {
      {[](auto* s) {
         s->mutable_nodes(1)->set_reachable(false);
         s->mutable_nodes(1)->set_error("refused");
         s->mutable_nodes(0)->set_silent_peers(1);  // because of that
       },
       "KV node b:1 is down: refused"},
      {[](auto* s) { s->mutable_nodes(0)->set_draining(true); }, "KV node a:1 drains"},
      {[](auto* s) { s->mutable_nodes(2)->set_knows_peers(false); },
       "KV node c:1 has not compared its blocks with the others'"},
      {[](auto* s) { s->mutable_nodes(2)->set_compared_ms_ago(2001); },
       "KV node c:1 has not compared its blocks with the others'"},
      {[](auto* s) { s->mutable_nodes(0)->set_silent_peers(1); },
       "KV node a:1 does not reach 1 other(s)"},
      {[](auto* s) { s->mutable_nodes(0)->set_waiting_copies(3); },
       "of 3 blocks of KV node a:1 a copy is missing"},
      {[](auto* s) { s->mutable_nodes(0)->set_no_node_copies(4); },
       "of 4 blocks of KV node a:1 a copy is missing"},
      {[](auto* s) { s->set_membership_error("no etcd"); },
       "the list of KV nodes cannot be read: no etcd"},
      {[](auto* s) { s->set_replicas(4); }, "3 KV nodes for 4 copies"},
      {[](auto* s) {
         s->mutable_workers(0)->set_reachable(false);
         s->mutable_workers(0)->set_error("refused");
       },
       "prefill worker prefill:2 is down: refused"},
      {[](auto* s) { s->mutable_workers(1)->set_error("profile bf16"); },
       "attention worker attention:2 is not used: profile bf16"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.missing);
    v1::GetStatusResponse status = Whole();
    c.change(&status);
    EXPECT_EQ(MissingForWhole(status, seconds(2)), c.missing);
  }
}

TEST(MissingForWhole, AsksNodesWithoutRepairOnlyWhetherTheyAreUp) {
  v1::GetStatusResponse status = Whole();
  for (v1::StoreNodeStatus& node : *status.mutable_nodes()) {
    node.set_knows_peers(false);
    node.set_compared_ms_ago(0);
  }
  EXPECT_EQ(MissingForWhole(status, seconds(2)), "");
}

}  // namespace
}  // namespace oscarkv::cli
