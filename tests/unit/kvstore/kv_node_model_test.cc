// Random operations on a node beside a plain model of what it promised.
//
// The model knows every put, erase, pin and TTL, but not which blocks the node evicts. So a block
// that the model does not have must not be found; one that it has must be found while the node has
// evicted nothing. What is found, pinned or released as good always has the right bytes, although
// abandoned writers go on scribbling into what they once reserved. What remains of a chain is
// always a prefix.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "kvstore/core/kv_node.h"
#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Chain;
using kvtest::Table;
using kvtest::TestNode;
using std::chrono::seconds;

constexpr Duration kPutTtl = seconds(20);
constexpr Duration kPinTtl = seconds(15);

struct Universe {
  struct Name {
    BlockKey key, parent;
    uint64_t size;
    BlockKind kind;
    Duration ttl;
  };
  std::vector<Name> names;
  std::map<BlockKey, size_t> index;
};

Universe MakeUniverse() {
  Universe u;
  const uint64_t sizes[] = {700, 3000, 9000};
  for (int c = 0; c < 12; ++c) {
    const std::vector<BlockKey> chain = Chain(c, 6);
    for (int i = 0; i < 6; ++i) {
      u.names.push_back({chain[i], i == 0 ? BlockKey{} : chain[i - 1], sizes[c % 3],
                         BlockKind::kPage, Duration(0)});
    }
    u.names.push_back({WindowKey(chain[5]), {}, 30000, BlockKind::kHandover, seconds(5 + c)});
  }
  for (size_t i = 0; i < u.names.size(); ++i) u.index[u.names[i].key] = i;
  return u;
}

class Walk {
 public:
  Walk(uint64_t seed, EvictionKind eviction, uint64_t arena_bytes)
      : universe_(MakeUniverse()), rng_(seed), node_(Options(eviction), arena_bytes) {
    for (int i = 0; i < 3; ++i) sessions_.push_back(node_.Open("walker"));
  }

  void Step() {
    switch (Random(14)) {
      case 0:
      case 1:
      case 2:
        return StartPut();
      case 3:
      case 4:
      case 5:
        return EndPut();
      case 6:
        return RevokePut();
      case 7:
      case 8:
        return Pin();
      case 9:
        return Release();
      case 10:
        return Lookup();
      case 11:
        return Random(4) == 0 ? Erase() : Scribble();
      case 12:
        return Random(30) == 0 ? ReplaceSession() : Lookup();
      case 13:
        return PassTime();
    }
  }

  void Check() {
    const kv::StatsResponse s = node_.Stats();
    uint64_t blocks = 0;
    for (uint64_t k : s.kind_blocks) blocks += k;
    ASSERT_LE(blocks, stored_.size());
    ASSERT_LE(s.used_bytes, s.capacity_bytes);
    if (s.evictions == 0) {
      ASSERT_EQ(blocks, stored_.size());
    }
    for (const auto& [id, pin] : pins_)
      ASSERT_EQ(node_.Read(pin.location), BytesOf(pin.name)) << "a pinned block changed";
    for (size_t i = 0; i + 1 < universe_.names.size(); ++i) {
      const auto& next = universe_.names[i + 1];
      if (next.parent != universe_.names[i].key || erased_inside_.count(next.key) > 0) continue;
      ASSERT_TRUE(!node_.Exists(next.key) || node_.Exists(next.parent))
          << "a chain lost its middle";
    }
  }

  // Everything ends: nothing may remain.
  void End() {
    for (uint64_t s : sessions_) {
      kv::CloseSessionResponse closed;
      ASSERT_TRUE(node_.node().Handle(kv::CloseSessionRequest{s}, &closed).ok());
    }
    node_.Pass(2 * kPutTtl + seconds(1));
    for (const auto& [name, block] : stored_) node_.Erase(universe_.names[name].key).IgnoreError();
    const kv::StatsResponse s = node_.Stats();
    EXPECT_EQ(s.used_bytes, 0u);
    EXPECT_EQ(s.pinned_bytes, 0u);
    EXPECT_EQ(s.reserved_bytes, 0u);
    EXPECT_EQ(s.quarantined_bytes, 0u);
    for (int k = 0; k < kNumBlockKinds; ++k) EXPECT_EQ(s.kind_bytes[k], 0u);
  }
  uint64_t evictions() { return node_.Stats().evictions; }

 private:
  struct Stored {
    Time expires;
  };
  struct Reserved {
    size_t name;
    uint64_t session, offset, generation;
    Time started;
  };
  struct Pinned {
    size_t name;
    uint64_t session;
    kv::BlockLocation location;
    Time expires;
  };

  static KvNodeOptions Options(EvictionKind eviction) {
    KvNodeOptions o;
    o.eviction = eviction;
    o.shards = 3;
    o.slab_bytes = 64 << 10;
    o.put_ttl = kPutTtl;
    o.max_pin_ttl = kPinTtl;
    o.high_watermark = 1;
    o.low_watermark = 0.9;
    return o;
  }
  uint64_t Random(uint64_t n) { return rng_() % n; }
  size_t AnyName() { return Random(universe_.names.size()); }
  uint64_t AnySession() { return sessions_[Random(sessions_.size())]; }
  Time Now() { return node_.clock().Now(); }
  kv::PutItem ItemOf(size_t name) const {
    const auto& n = universe_.names[name];
    return {n.key, n.parent, n.kind, n.size, n.ttl};
  }
  std::string BytesOf(size_t name) const {
    return Bytes(universe_.names[name].key, universe_.names[name].size);
  }
  bool IsStored(size_t name) {
    const auto it = stored_.find(name);
    if (it == stored_.end()) return false;
    if (it->second.expires > Now()) return true;
    stored_.erase(it);
    return false;
  }
  Reserved* FindReserved(size_t name, uint64_t session) {
    for (Reserved& r : reserved_) {
      if (r.name == name && r.session == session) return &r;
    }
    return nullptr;
  }

  void StartPut() {
    const size_t name = AnyName();
    const uint64_t session = AnySession();
    const auto place = node_.Start(ItemOf(name), session);
    if (Reserved* before = FindReserved(name, session)) {
      ASSERT_TRUE(place.status.ok());
      ASSERT_EQ(place.offset, before->offset);
      ASSERT_EQ(place.generation, before->generation);
    } else if (absl::IsAlreadyExists(place.status)) {
      ASSERT_TRUE(IsStored(name));
      if (universe_.names[name].ttl > Duration(0)) {
        stored_[name].expires = std::max(stored_[name].expires, Now() + universe_.names[name].ttl);
      }
    } else if (place.status.ok()) {
      ASSERT_TRUE(!IsStored(name) || evictions() > 0);
      stored_.erase(name);  // evicted
      reserved_.push_back({name, session, place.offset, place.generation, Now()});
      if (Random(2) == 0) node_.WriteArena(place.offset, BytesOf(name));
    } else {
      ASSERT_EQ(place.status.code(), absl::StatusCode::kResourceExhausted);
    }
  }

  void EndPut() {
    if (reserved_.empty()) return;
    const size_t i = Random(reserved_.size());
    const Reserved r = reserved_[i];
    std::string bytes = BytesOf(r.name);
    const kv::SliceTable table = Table(bytes);
    const bool torn = Random(5) == 0;
    if (torn) bytes[Random(bytes.size())] ^= 1;
    node_.WriteArena(r.offset, bytes);
    const absl::Status ended =
        node_.End(universe_.names[r.name].key, r.generation, table, r.session);
    if (torn) {
      ASSERT_EQ(ended.code(), absl::StatusCode::kDataLoss);
      return;
    }
    ASSERT_TRUE(ended.ok()) << ended;
    reserved_.erase(reserved_.begin() + i);
    if (!IsStored(r.name) || !node_.Exists(universe_.names[r.name].key)) {
      stored_.erase(r.name);
    }
    if (stored_.count(r.name) == 0) {
      const Duration ttl = universe_.names[r.name].ttl;
      stored_[r.name] = {ttl > Duration(0) ? Now() + ttl : Time::max()};
    } else if (evictions() > 0 && universe_.names[r.name].ttl > Duration(0)) {
      // It may have been evicted and stored anew by this put.
      stored_[r.name].expires =
          std::max(stored_[r.name].expires, Now() + universe_.names[r.name].ttl);
    }
    ASSERT_TRUE(node_.Exists(universe_.names[r.name].key));
    erased_inside_.erase(universe_.names[r.name].key);
    if (!universe_.names[r.name].parent.empty() && !node_.Exists(universe_.names[r.name].parent)) {
      erased_inside_.insert(universe_.names[r.name].key);  // stored without its parent
    }
  }

  void RevokePut() {
    if (reserved_.empty()) return;
    const size_t i = Random(reserved_.size());
    const Reserved r = reserved_[i];
    const bool drained = Random(2) == 0;
    ASSERT_TRUE(node_.Revoke(r.generation, drained, r.session).ok());
    reserved_.erase(reserved_.begin() + i);
    if (!drained) abandoned_.push_back(r);
  }

  void Pin() {
    const size_t name = AnyName();
    const uint64_t session = AnySession();
    const auto location = node_.Pin(universe_.names[name].key, session);
    if (!location) {
      ASSERT_TRUE(!IsStored(name) || evictions() > 0);
      stored_.erase(name);
      return;
    }
    ASSERT_TRUE(IsStored(name));
    ASSERT_EQ(node_.Read(*location), BytesOf(name));
    pins_[pin_number_++] = {name, session, *location, Now() + kPinTtl};
  }

  void Release() {
    if (pins_.empty()) return;
    auto it = pins_.begin();
    std::advance(it, Random(pins_.size()));
    const std::string bytes = node_.Read(it->second.location);
    ASSERT_TRUE(node_.Release(it->second.location, it->second.session).ok());
    ASSERT_EQ(bytes, BytesOf(it->second.name));
    ASSERT_EQ(node_.Release(it->second.location, it->second.session).code(),
              absl::StatusCode::kAborted);
    pins_.erase(it);
  }

  void Lookup() {
    const size_t name = AnyName();
    const bool exists = node_.Exists(universe_.names[name].key);
    if (exists) {
      ASSERT_TRUE(IsStored(name));
    } else {
      ASSERT_TRUE(!IsStored(name) || evictions() > 0);
      stored_.erase(name);
    }
    ASSERT_EQ(node_.Match({universe_.names[name].key}), exists ? 1u : 0u);
  }

  void Erase() {
    const size_t name = AnyName();
    const bool existed = node_.Exists(universe_.names[name].key);
    ASSERT_EQ(node_.Erase(universe_.names[name].key).ok(), existed);
    stored_.erase(name);
    for (const auto& n : universe_.names) {
      if (n.parent == universe_.names[name].key) erased_inside_.insert(n.key);
    }
  }

  // Writers that were cut off write on, for as long as transfers may take.
  void Scribble() {
    std::erase_if(abandoned_, [&](const Reserved& r) { return Now() >= r.started + 2 * kPutTtl; });
    for (const Reserved& r : abandoned_)
      node_.WriteArena(r.offset, std::string(universe_.names[r.name].size, 'X'));
  }

  void ReplaceSession() {
    const size_t i = Random(sessions_.size());
    const uint64_t old = sessions_[i];
    kv::CloseSessionResponse closed;
    ASSERT_TRUE(node_.node().Handle(kv::CloseSessionRequest{old}, &closed).ok());
    const auto of_old = [&](const auto& x) { return x.session == old; };
    std::erase_if(reserved_, of_old);
    std::erase_if(abandoned_, of_old);
    std::erase_if(pins_, [&](const auto& p) { return p.second.session == old; });
    sessions_[i] = node_.Open("walker");
  }

  void PassTime() {
    const Duration time = seconds(1 + Random(4));
    node_.Pass(time, sessions_);
    std::erase_if(pins_, [&](const auto& p) { return p.second.expires <= Now(); });
    for (size_t i = 0; i < reserved_.size();) {
      if (reserved_[i].started + kPutTtl <= Now()) {
        abandoned_.push_back(reserved_[i]);
        reserved_.erase(reserved_.begin() + i);
      } else {
        ++i;
      }
    }
    for (size_t name = 0; name < universe_.names.size(); ++name) IsStored(name);
    Scribble();
  }

  const Universe universe_;
  std::mt19937_64 rng_;
  TestNode node_;
  std::vector<uint64_t> sessions_;
  std::map<size_t, Stored> stored_;
  std::vector<Reserved> reserved_, abandoned_;
  std::map<uint64_t, Pinned> pins_;
  uint64_t pin_number_ = 0;
  std::set<BlockKey> erased_inside_;  // blocks whose parent went by Erase or never was there
};

struct Case {
  const char* name;
  EvictionKind eviction;
  uint64_t arena_bytes;
  bool evicts;
};

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return info.param.name;
}

class ModelTest : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Nodes, ModelTest,
                         testing::Values(Case{"Roomy", EvictionKind::kS3Fifo, 8 << 20, false},
                                         Case{"TightS3Fifo", EvictionKind::kS3Fifo, 448 << 10,
                                              true},
                                         Case{"TightLru", EvictionKind::kLru, 448 << 10, true}),
                         CaseName);

TEST_P(ModelTest, KeepsItsPromises) {
  uint64_t evictions = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Walk walk(seed, GetParam().eviction, GetParam().arena_bytes);
    for (int step = 0; step < 3000; ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      walk.Step();
      if (step % 10 == 0) walk.Check();
      if (testing::Test::HasFatalFailure()) return;
    }
    evictions += walk.evictions();
    walk.End();
  }
  EXPECT_EQ(evictions > 0, GetParam().evicts);
}

}  // namespace
}  // namespace oscarkv
