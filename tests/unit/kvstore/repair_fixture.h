// Nodes with repairers that share a fake clock, and a client of them.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "client_fixture.h"
#include "kvstore/repair/repairer.h"

namespace oscarkv::kvtest {

inline constexpr uint64_t kSize = 1200;
inline constexpr int kBlocks = 100;

inline std::vector<Member> Members(const std::string& names) {
  std::vector<Member> members;
  for (const char name : names) members.push_back({.endpoint = std::string(1, name)});
  return members;
}

class RepairTest : public ClientTest {
 protected:
  RepairTest() : buffer_(&transport_, kBlocks * kSize), chain_(Chain(3, kBlocks)) {
    specs_ = SpecsOf(chain_, kSize);
  }

  void StartNodes(int nodes, int client_replicas, KvNodeOptions o = {}, HotOptions hot = {}) {
    hot_ = hot;
    for (int i = 0; i < nodes; ++i) AddServer(&fake_, o);
    std::string names;
    for (const auto& [name, server] : servers_) names += name;
    membership_ = std::make_unique<StaticMembership>(Members(names));
    for (const auto& [name, server] : servers_) StartRepairer(name);
    KvClientOptions client;
    client.replicas = client_replicas;
    Connect(client);
  }
  void StartRepairer(const std::string& name) {
    RepairOptions o;
    o.self = o.name = name;
    o.rate = 0;
    o.settle = Duration(0);
    o.hot = hot_;
    o.grace = std::chrono::seconds(30);
    TestServer* server = servers_[name].get();
    const KvStubFactory stubs = [this](const std::string& peer) {
      return servers_[peer]->NewStub();
    };
    const auto connect = [=](const Member& peer, const std::string& tenant) {
      KvClientOptions client;
      client.nodes = {peer.endpoint};
      client.replicas = 1;
      client.tenant = tenant;
      client.transport = server->transport();
      return CreateKvClient(client, stubs);
    };
    repairers_[name] = std::make_unique<Repairer>(o, server->node(), membership_.get(), stubs,
                                                  connect, &fake_, &metrics_);
  }
  void Put() { ASSERT_TRUE(AllOk(PutAll(client_.get(), specs_, buffer_.data()))); }
  // Every node that is there looks `rounds` times.
  void Rounds(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      for (const auto& [name, repairer] : repairers_) {
        if (!away_.contains(name)) stats_[name] = repairer->RunRound();
      }
    }
  }
  // Until no copy is missing. A repairer may first find out that its session was with a process
  // that is gone; a thread of its own connects it again.
  void Settle() {
    Await([&] {
      Rounds(1);
      return Waiting() == 0;
    });
  }
  void Unplug(const std::string& name) {
    servers_[name]->set_plugged(false);
    away_.insert(name);
    // The client learns it: what it opened there is gone when another process comes back.
    Await([&] { return !client_->Stats(Soon())[name[0] - 'a'].reachable; });
  }
  // Another process, its memory empty.
  void Return(const std::string& name) {
    repairers_.erase(name);
    servers_[name]->Restart();
    StartRepairer(name);
    servers_[name]->set_plugged(true);
    away_.erase(name);
  }
  uint64_t Waiting() {
    uint64_t sum = 0;
    for (const auto& [name, s] : stats_) sum += away_.contains(name) ? 0 : s.waiting_blocks;
    return sum;
  }
  uint64_t Blocks(const std::string& node) { return servers_[node]->Stats().kind_blocks[0]; }
  double Copies(const char* outcome) { return metrics_.copies.With({outcome}).value(); }
  // All blocks are found and delivered, once the client knows who is there.
  void ExpectAll() {
    Await([&] {
      for (const KvNodeStats& s : client_->Stats(Soon())) {
        if (s.reachable == away_.contains(s.node)) return false;
      }
      return true;
    });
    EXPECT_EQ(*client_->Match(chain_, Soon()), chain_.size());
    ExpectDelivered(specs_, kSize, buffer_.data());
  }

  Buffer buffer_;
  const std::vector<BlockKey> chain_;
  std::vector<BlockSpec> specs_;
  std::unique_ptr<StaticMembership> membership_;
  HotOptions hot_;
  KvRepairMetrics metrics_{&registry_};
  std::map<std::string, std::unique_ptr<Repairer>> repairers_;
  std::map<std::string, ReplicaStats> stats_;
  std::set<std::string> away_;
};

}  // namespace oscarkv::kvtest
