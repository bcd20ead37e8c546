// Blocks with several copies: what nodes that die, come back, lose bytes or stand still cost the
// client, and how the members' changes are taken up.
#include <gtest/gtest.h>

#include <thread>

#include "client_fixture.h"

namespace oscarkv {
namespace {

using namespace kvtest;  // NOLINT: a test's own helpers
using std::chrono::seconds;

constexpr uint64_t kSize = 1200;
constexpr int kBlocks = 100;

class FakeMembership final : public Membership {
 public:
  void Set(std::vector<Member> members) {
    std::function<void()> listener;
    {
      MutexLock lock(mu_);
      list_ =
          std::make_shared<const MemberList>(MemberList{list_->revision + 1, std::move(members)});
      listener = listener_;
    }
    if (listener) listener();
  }
  std::shared_ptr<const MemberList> Current() const override {
    MutexLock lock(mu_);
    return list_;
  }
  MembershipState state() const override { return {"fake", false, "out of order"}; }
  void Listen(std::function<void()> changed) override {
    MutexLock lock(mu_);
    listener_ = std::move(changed);
  }

 private:
  mutable Mutex mu_;
  std::shared_ptr<const MemberList> list_ GUARDED_BY(mu_) = std::make_shared<const MemberList>();
  std::function<void()> listener_ GUARDED_BY(mu_);
};

class ReplicasTest : public ClientTest {
 protected:
  ReplicasTest() : buffer_(&transport_, kBlocks * kSize), chain_(Chain(3, kBlocks)) {
    specs_ = SpecsOf(chain_, kSize);
  }
  void Start(int nodes, KvClientOptions options = {}) {
    for (int i = 0; i < nodes; ++i) AddServer(&fake_);
    Connect(options);
  }
  void StartWith(int nodes, std::vector<Member> members) {
    for (int i = 0; i < nodes; ++i) AddServer(&fake_);
    auto membership = std::make_unique<FakeMembership>();
    membership_ = membership.get();
    membership_->Set(std::move(members));
    KvClientOptions o;
    o.transport = &transport_;
    o.metrics = &registry_;
    auto client = CreateKvClient(o, std::move(membership), [this](const std::string& name) {
      return servers_[name]->NewStub();
    });
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  void Put() { ASSERT_TRUE(AllOk(PutAll(client_.get(), specs_, buffer_.data()))); }
  // Match finds all, Get delivers all.
  void ExpectAll() {
    EXPECT_EQ(*client_->Match(chain_, Soon()), chain_.size());
    ExpectDelivered(specs_, kSize, buffer_.data());
    std::vector<BlockKey> placement;
    for (const BlockSpec& s : specs_) placement.push_back(s.placement);
    for (bool stored : client_->Exists(chain_, placement, Soon())) EXPECT_TRUE(stored);
  }
  uint64_t Blocks(const std::string& node) { return servers_[node]->Stats().kind_blocks[0]; }
  double Failovers(const char* op, const char* reason) {
    return KvClientMetrics(&registry_).failovers.With({op, reason}).value();
  }

  Buffer buffer_;
  const std::vector<BlockKey> chain_;
  std::vector<BlockSpec> specs_;
  FakeMembership* membership_ = nullptr;
};

TEST_F(ReplicasTest, TwoCopiesByDefault) {
  Start(3);
  Put();
  EXPECT_EQ(client_->View().replicas, 2);
  EXPECT_EQ(Blocks("a") + Blocks("b") + Blocks("c"), 2u * kBlocks);
  for (const char* node : {"a", "b", "c"}) EXPECT_LE(Blocks(node), uint64_t{kBlocks});
  ExpectAll();
  EXPECT_EQ(Failovers("get", "not_found") + Failovers("match", "not_found"), 0);
  // A put of what is stored writes nothing.
  const auto again = client_->StartPut(specs_, Soon());
  for (const absl::Status& s : (*again)->statuses()) EXPECT_TRUE(absl::IsAlreadyExists(s)) << s;
}

// As when nodes and workers start together and the registry lists the nodes a moment later.
TEST_F(ReplicasTest, AClientAwaitsTheFirstMember) {
  AddServer(&fake_);
  auto membership = std::make_unique<FakeMembership>();
  FakeMembership* const members = membership.get();
  KvClientOptions o;
  o.transport = &transport_;
  std::thread registration([members] {
    // Time for the client to have asked nobody; without it this test would still pass.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    members->Set({{.endpoint = "a"}});
  });
  const auto client = CreateKvClient(o, std::move(membership), [this](const std::string& name) {
    return servers_[name]->NewStub();
  });
  registration.join();
  EXPECT_TRUE(client.ok()) << client.status();
}

TEST_F(ReplicasTest, NothingIsLostWithAnyOneNode) {
  Start(3);
  Put();
  for (auto& [name, server] : servers_) {
    SCOPED_TRACE(name);
    const size_t node = name[0] - 'a';
    server->set_plugged(false);
    ExpectAll();
    server->set_plugged(true);
    Await([&] { return client_->Stats(Soon())[node].reachable; });
  }
  EXPECT_GT(Failovers("match", "unavailable") + Failovers("get", "unavailable"), 0);
}

TEST_F(ReplicasTest, AnEmptyNodeThatCameBackIsNotBelieved) {
  Start(2);
  Put();
  for (const char* name : {"a", "b"}) {
    TestServer* server = servers_[name].get();
    server->set_plugged(false);
    ExpectAll();  // and the client learns that it is gone
    server->Restart();
    server->set_plugged(true);
    Await([&] { return client_->Stats(Soon())[name[0] - 'a'].reachable; });
    ExpectAll();
    Put();  // makes the second copies again
    EXPECT_EQ(Blocks(name), uint64_t{kBlocks});
  }
}

TEST_F(ReplicasTest, ACorruptCopyIsReplacedByTheOther) {
  Start(2);
  Put();
  ASSERT_TRUE(servers_["a"]->Damage(chain_[5], kSize));
  ASSERT_TRUE(servers_["b"]->Damage(chain_[50], kSize));
  for (int i = 0; i < 8; ++i) ExpectAll();  // whichever copy is read
  EXPECT_LE(Failovers("get", "data_loss"), 2);
  EXPECT_GE(Blocks("a"), uint64_t{kBlocks - 1});
  EXPECT_EQ(servers_["a"]->Stats().pinned_bytes + servers_["b"]->Stats().pinned_bytes, 0u);
}

TEST_F(ReplicasTest, PutsPassNodesThatAreAway) {
  Start(3);
  servers_["a"]->set_plugged(false);
  Put();
  EXPECT_EQ(Blocks("a"), 0u);
  EXPECT_EQ(Blocks("b") + Blocks("c"), 2u * kBlocks) << "two copies all the same";
  servers_["a"]->set_plugged(true);
  Await([&] { return client_->Stats(Soon())[0].reachable; });
  servers_["b"]->set_plugged(false);
  ExpectAll();
}

TEST_F(ReplicasTest, TheQuorumDecides) {
  KvClientOptions o;
  o.write_quorum = 2;
  Start(2, o);
  Put();
  servers_["b"]->set_plugged(false);
  const std::vector<BlockSpec> more = SpecsOf(Chain(4, 1), kSize);
  const auto refused = PutAll(client_.get(), more, buffer_.data());
  EXPECT_EQ(refused[0].code(), absl::StatusCode::kUnavailable) << refused[0];
  o.write_quorum = 1;
  Connect(o);
  EXPECT_TRUE(AllOk(PutAll(client_.get(), SpecsOf(Chain(5, 1), kSize), buffer_.data())));
  EXPECT_EQ(KvClientMetrics(&registry_).short_puts.Get().value(), 1);
}

TEST_F(ReplicasTest, ANodeThatStandsStillIsLeft) {
  Start(2);
  Put();
  servers_["a"]->Stall();
  servers_["b"]->Stall();
  std::thread reader([&] { ExpectAll(); });
  KvClientMetrics metrics(&registry_);
  // Each run's first replica was left; the last one is waited for.
  Await(
      [&] { return metrics.hedges.With({"a"}).value() + metrics.hedges.With({"b"}).value() >= 1; });
  Await([&] {
    return servers_["a"]->calls<kv::GetStartRequest>() > 0 &&
           servers_["b"]->calls<kv::GetStartRequest>() > 0;
  });
  servers_["a"]->Resume();
  servers_["b"]->Resume();
  reader.join();
  EXPECT_GE(Failovers("get", "deadline_exceeded"), 1);
  Await([&] {  // also what was pinned for nobody
    return servers_["a"]->Stats().pinned_bytes + servers_["b"]->Stats().pinned_bytes == 0;
  });
}

TEST_F(ReplicasTest, OneStalledNodeHoldsNobodyUp) {
  Start(2);
  Put();
  servers_["a"]->Stall();
  for (int i = 0; i < 6; ++i) ExpectAll();
  servers_["a"]->Resume();
  Await([&] { return servers_["a"]->Stats().pinned_bytes == 0; });
}

TEST_F(ReplicasTest, ReadsPreferTheOwnZone) {
  KvClientOptions o;
  o.nodes = {"a@east", "b@west"};
  o.zone = "west";
  Start(2, o);
  Put();
  ExpectAll();
  KvClientMetrics metrics(&registry_);
  EXPECT_EQ(metrics.blocks.With({"get", "loopback", "b"}).value(), kBlocks);
  EXPECT_EQ(client_->Stats(Soon())[0].zone, "east");
  servers_["b"]->set_plugged(false);
  ExpectAll();
}

TEST_F(ReplicasTest, MembersJoinDrainAndLeave) {
  StartWith(3, {{.endpoint = "a"}, {.endpoint = "b"}});
  Put();
  EXPECT_EQ(client_->View().membership, "fake");
  EXPECT_FALSE(client_->View().connected);
  EXPECT_EQ(Blocks("c"), 0u);
  // c joins, a drains: new blocks go to b and c, old ones are still found.
  membership_->Set({{.endpoint = "a", .draining = true}, {.endpoint = "b"}, {.endpoint = "c"}});
  ExpectAll();
  Await([&] { return client_->Stats(Soon())[2].reachable; });
  const uint64_t before = Blocks("a");
  const std::vector<BlockSpec> more = SpecsOf(Chain(9, 50), kSize);
  ASSERT_TRUE(AllOk(PutAll(client_.get(), more, buffer_.data())));
  EXPECT_EQ(Blocks("a"), before);
  EXPECT_EQ(Blocks("c"), 50u);
  EXPECT_TRUE(client_->Stats(Soon())[0].draining);
  membership_->Set({{.endpoint = "b"}, {.endpoint = "c"}});
  ExpectAll();
  EXPECT_EQ(client_->Stats(Soon()).size(), 2u);
  Await([&] { return servers_["a"]->Stats().sessions == 0; });
  membership_->Set({});
  EXPECT_EQ(*client_->Match(chain_, Soon()), 0u);
  EXPECT_EQ(client_->Get(RequestsOf(specs_, buffer_.data()), Soon(), nullptr)[0].code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ((*client_->StartPut(specs_, Soon()))->statuses()[0].code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(ReplicasTest, AnotherProcessAtARegisteredAddressIsNotUsed) {
  AddServer(&fake_);
  AddServer(&fake_);
  const uint64_t a = servers_["a"]->node()->incarnation(), b = servers_["b"]->node()->incarnation();
  StartWith(0, {{.endpoint = "a", .incarnation = a}, {.endpoint = "b", .incarnation = b + 1}});
  EXPECT_TRUE(client_->Stats(Soon())[0].reachable);
  EXPECT_FALSE(client_->Stats(Soon())[1].reachable);
  EXPECT_NE(client_->Stats(Soon())[1].error.find("stale"), std::string::npos);
  EXPECT_GE(KvClientMetrics(&registry_).stale_nodes.With({"b"}).value(), 1);
  membership_->Set({{.endpoint = "a", .incarnation = a + 1}, {.endpoint = "b", .incarnation = b}});
  Await([&] {
    const auto stats = client_->Stats(Soon());
    return !stats[0].reachable && stats[1].reachable;
  });
}

TEST_F(ReplicasTest, WrongOptionsAreNamed) {
  const KvStubFactory none = [](const std::string&) { return nullptr; };
  KvClientOptions o;
  o.nodes = {"a", "b"};
  for (const auto& [replicas, quorum] :
       {std::pair(-1, 1), std::pair(9, 1), std::pair(0, 0), std::pair(1, 2), std::pair(0, 3)}) {
    o.replicas = replicas;
    o.write_quorum = quorum;
    EXPECT_EQ(CreateKvClient(o, none).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace oscarkv
