// A client with nodes in the same process that can be unplugged, slowed and damaged: stubs straight
// onto nodes, loopback transport.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <thread>

#include "client_support.h"
#include "kvstore/client/kv_client.h"
#include "kvstore/core/local_stub.h"
#include "tests/fakes/faulty_transport.h"

namespace oscarkv::kvtest {

// A node that can be unplugged, and that counts its calls.
class TestServer {
 public:
  TestServer(std::shared_ptr<LoopbackNetwork> network, KvNodeOptions o, const Clock* clock)
      : transport_(CreateLoopbackTransport(std::move(network))),
        arena_(*transport_->Allocate(1 << 20, false)) {
    o.transport_name = transport_->name();
    o.transport_address = transport_->Address();
    o.exported_arena = arena_->Export();
    options_ = o;
    clock_ = clock;
    Restart();
  }
  // Another process at the same place: its memory is empty. Unplug it first.
  void Restart() {
    options_.seed += 1000;
    nodes_.push_back(std::make_unique<KvNode>(options_, arena_->span(), clock_, nullptr));
    node_ = nodes_.back().get();
  }
  std::unique_ptr<KvStub> NewStub() { return std::make_unique<Stub>(this); }
  KvNode* node() { return node_; }
  Transport* transport() { return transport_.get(); }
  uint8_t* arena() { return arena_->span().data(); }
  void set_plugged(bool plugged) { plugged_ = plugged; }
  // The answers to GetStart wait until `Resume`.
  void Stall() {
    MutexLock lock(mu_);
    stalled_ = true;
  }
  void Resume() {
    std::vector<std::function<void()>> held;
    {
      MutexLock lock(mu_);
      stalled_ = false;
      held.swap(held_);
    }
    for (auto& answer : held) answer();
  }
  // True: this copy of the block was there, now a bit of it differs.
  bool Damage(const BlockKey& key, uint64_t size) {
    const std::string bytes = Bytes(key, size);
    const absl::string_view memory(reinterpret_cast<char*>(arena()), arena_->span().size());
    const size_t at = memory.find(bytes);
    if (at == absl::string_view::npos) return false;
    arena()[at + size - 1] ^= 1;
    return true;
  }
  template <typename Request>
  int calls() const {
    return calls_[kv::KvRequest(Request{}).index()];
  }
  kv::StatsResponse Stats() {
    kv::StatsResponse s;
    EXPECT_TRUE(node()->Handle(kv::StatsRequest{}, &s).ok());
    return s;
  }

 private:
  class Stub final : public KvStub {
   public:
    explicit Stub(TestServer* server) : server_(server) {}
    void Call(const kv::KvRequest& request, Time deadline, Done done) override {
      if (!server_->plugged_) return done(absl::UnavailableError("unplugged"));
      ++server_->calls_[request.index()];
      if (std::holds_alternative<kv::GetStartRequest>(request)) {
        done = [server = server_, done](absl::StatusOr<kv::KvResponse> response) {
          {
            MutexLock lock(server->mu_);
            if (server->stalled_) {
              server->held_.push_back([done, response] { done(response); });
              return;
            }
          }
          done(std::move(response));
        };
      }
      LocalStub(server_->node()).Call(request, deadline, std::move(done));
    }
    void ReadBlocks(uint64_t session, std::vector<ReadTarget> targets, Time deadline,
                    ReadDone done) override {
      if (!server_->plugged_) return done(absl::UnavailableError("unplugged"));
      LocalStub(server_->node()).ReadBlocks(session, std::move(targets), deadline, std::move(done));
    }
    void WriteBlocks(uint64_t session, std::vector<WriteSource> sources, Time deadline,
                     CallCanceller* canceller, WriteDone done) override {
      if (!server_->plugged_) return done(absl::UnavailableError("unplugged"));
      LocalStub(server_->node())
          .WriteBlocks(session, std::move(sources), deadline, canceller, std::move(done));
    }

   private:
    TestServer* const server_;
  };

  std::unique_ptr<Transport> transport_;
  std::unique_ptr<MemoryRegion> arena_;
  KvNodeOptions options_;
  const Clock* clock_ = nullptr;
  std::vector<std::unique_ptr<KvNode>> nodes_;  // the last one runs
  std::atomic<KvNode*> node_{nullptr};
  std::atomic<bool> plugged_{true};
  Mutex mu_;
  bool stalled_ GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> held_ GUARDED_BY(mu_);
  std::atomic<int> calls_[std::variant_size_v<kv::KvRequest>] = {};
};

class ClientTest : public testing::Test {
 protected:
  // The nodes' names decide the placement; they are those of the order of creation.
  TestServer* AddServer(const Clock* clock, KvNodeOptions o = {}) {
    o.seed = servers_.size() + 1;
    o.slab_bytes = 64 << 10;
    const std::string name(1, static_cast<char>('a' + servers_.size()));
    return (servers_[name] = std::make_unique<TestServer>(network_, o, clock)).get();
  }
  void Connect(Duration pin_ttl = std::chrono::seconds(30)) {
    KvClientOptions o;
    o.replicas = 1;  // replicas: replicas_test.cc
    o.pin_ttl = pin_ttl;
    Connect(o);
  }
  void Connect(KvClientOptions o) {
    if (o.nodes.empty()) {
      for (const auto& [name, server] : servers_) o.nodes.push_back(name);
    }
    o.transport = &transport_;
    o.metrics = &registry_;
    auto client =
        CreateKvClient(o, [this](const std::string& name) { return servers_[name]->NewStub(); });
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  // Get delivers all, into a buffer with room for `size` bytes of each.
  void ExpectDelivered(const std::vector<BlockSpec>& specs, uint64_t size, uint8_t* buffer) {
    std::memset(buffer, 0, specs.size() * size);
    EXPECT_TRUE(AllOk(client_->Get(RequestsOf(specs, buffer), Soon(), nullptr)));
    for (size_t i = 0; i < specs.size(); ++i) {
      EXPECT_EQ(std::string(reinterpret_cast<char*>(buffer) + i * size, size),
                Bytes(specs[i].key, size));
    }
  }
  // Until `condition` holds; what is waited for is the client's own thread.
  static void Await(const std::function<bool()>& condition) {
    const Time deadline = Soon();
    while (!condition()) {
      ASSERT_LT(SteadyClock::Get()->Now(), deadline) << "waited in vain";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  FakeClock fake_;
  std::shared_ptr<LoopbackNetwork> network_ = CreateLoopbackNetwork();
  FaultyTransport transport_{CreateLoopbackTransport(network_)};
  MetricRegistry registry_;
  std::map<std::string, std::unique_ptr<TestServer>> servers_;
  std::unique_ptr<KvClient> client_;
};

}  // namespace oscarkv::kvtest
