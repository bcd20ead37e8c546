// The node with a tier below its memory: what goes down, what comes back, and who waits.
#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "kvstore/core/kv_node.h"
#include "kvstore/tier/ssd_tier.h"
#include "tests/fakes/mem_disk_store.h"
#include "tier_support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Chain;
using kvtest::Key;
using kvtest::TestNode;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kArena = 1 << 20;
constexpr uint64_t kSize = 32 << 10;
constexpr int kFit = 32;

// Answers when the test says so.
class FakeTier final : public Tier {
 public:
  struct Stored {
    TierBlock block;
    std::string bytes;
  };
  void Offer(const TierBlock& block, bool reused, absl::Span<const uint8_t> bytes) override {
    offers_.push_back({block.key.key, reused});
    blocks_[block.key.key] = {
        block, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())};
  }
  bool Contains(const TierKey& key) const override { return blocks_.count(key.key) > 0; }
  bool Touch(const TierKey& key) override { return Contains(key); }
  bool Fetch(const TierKey& key, Time until, FetchDone done) override {
    if (!Contains(key)) return false;
    ++fetches_;
    until_ = until;
    waiting_.emplace_back(key.key, std::move(done));
    return true;
  }
  void Erase(const TierKey& key) override { blocks_.erase(key.key); }
  TierStats stats() const override { return {}; }
  void Shutdown(Time) override {}

  // Ends the oldest open read: with the block, or with `status`.
  void Answer(absl::Status status = absl::OkStatus()) {
    auto [key, done] = std::move(waiting_.front());
    waiting_.pop_front();
    if (!status.ok()) return done(status, {});
    const Stored& s = blocks_.at(key);
    done(s.block, {reinterpret_cast<const uint8_t*>(s.bytes.data()), s.bytes.size()});
  }
  void AnswerAll() {
    while (!waiting_.empty()) Answer();
  }

  std::map<BlockKey, Stored> blocks_;
  std::vector<std::pair<BlockKey, bool>> offers_;
  std::deque<std::pair<BlockKey, FetchDone>> waiting_;
  int fetches_ = 0;
  Time until_{};
};

struct Get {
  int answers = 0;
  absl::Status status;
  kv::GetStartResponse response;
};

class KvNodeTierTest : public testing::Test {
 protected:
  KvNodeTierTest() : metrics_(&registry_), node_({}, kArena, &tier_, &metrics_) {}

  void Start(const std::vector<BlockKey>& keys, Get* get, Duration budget = seconds(10)) {
    node_.node().StartGet({node_.session(), keys, seconds(10)}, budget,
                          [get](const absl::Status& status, const kv::GetStartResponse& response) {
                            ++get->answers;
                            get->status = status;
                            get->response = response;
                          });
  }
  void ExpectBytes(const Get& get, size_t i, const BlockKey& key) {
    ASSERT_TRUE(get.response.statuses[i].ok()) << get.response.statuses[i];
    EXPECT_EQ(node_.Read(get.response.locations[i]), Bytes(key, kSize));
    EXPECT_TRUE(node_.Release(get.response.locations[i]).ok()) << "the pin held";
  }
  // A chain that has gone to the tier.
  std::vector<BlockKey> Demoted(int blocks) {
    const std::vector<BlockKey> chain = Chain(1, blocks);
    EXPECT_TRUE(node_.PutChain(chain, kSize).ok());
    EXPECT_TRUE(node_.PutChain(Chain(2, kFit), kSize).ok());
    for (const BlockKey& key : chain) EXPECT_EQ(tier_.blocks_.count(key), 1u);
    return chain;
  }
  double Promotions(const char* outcome) { return metrics_.promotions.With({outcome}).value(); }

  MetricRegistry registry_;
  KvTierMetrics metrics_;
  FakeTier tier_;
  TestNode node_;
};

TEST_F(KvNodeTierTest, EvictionOffersWholeBlocks) {
  const std::vector<BlockKey> chain = Demoted(4);
  const FakeTier::Stored& s = tier_.blocks_.at(chain[2]);
  EXPECT_EQ(s.bytes, Bytes(chain[2], kSize));
  EXPECT_EQ(s.block.parent, chain[1]);
  EXPECT_EQ(s.block.size, kSize);
  EXPECT_EQ(s.block.slices->lengths.size(), 3u);
  EXPECT_EQ(tier_.offers_.front().first, chain[3]) << "from the tail";
}

TEST_F(KvNodeTierTest, SaysWhichBlocksWereReused) {
  const std::vector<BlockKey> chain = Chain(1, 4);
  ASSERT_TRUE(node_.PutChain(chain, kSize).ok());
  EXPECT_EQ(node_.Match({chain[0], chain[1]}), 2u);
  for (const BlockKey& key : chain) EXPECT_TRUE(node_.Get(key)) << "reading is no reuse";
  for (int c = 2; c < 6; ++c) ASSERT_TRUE(node_.PutChain(Chain(c, kFit), kSize).ok());
  std::map<BlockKey, bool> reused(tier_.offers_.begin(), tier_.offers_.end());
  EXPECT_TRUE(reused.at(chain[0]));
  EXPECT_TRUE(reused.at(chain[1]));
  EXPECT_FALSE(reused.at(chain[2]));
  EXPECT_FALSE(reused.at(chain[3]));
}

TEST_F(KvNodeTierTest, HandoverBlocksAreNotOffered) {
  ASSERT_TRUE(node_.Put({Key(1), {}, BlockKind::kHandover, kSize, seconds(60)}).ok());
  ASSERT_TRUE(node_.PutChain(Chain(2, kFit), kSize).ok());
  EXPECT_FALSE(node_.Exists(Key(1)));
  EXPECT_TRUE(tier_.offers_.empty());
}

TEST_F(KvNodeTierTest, LookupsCountWhatIsOnDisk) {
  const std::vector<BlockKey> chain = Demoted(8);
  EXPECT_EQ(node_.Match(chain), 8u);
  EXPECT_TRUE(node_.Exists(chain[3]));
  tier_.blocks_.erase(chain[5]);
  EXPECT_EQ(node_.Match(chain), 5u);
  EXPECT_EQ(node_.Stats().hits, 13u);
  EXPECT_EQ(node_.Stats().misses, 3u);
}

TEST_F(KvNodeTierTest, AMatchRunsAcrossTiers) {
  const std::vector<BlockKey> chain = Demoted(6);
  Get get;
  Start({chain[1], chain[2], chain[4]}, &get);
  tier_.AnswerAll();
  for (int i : {0, 3, 5}) EXPECT_EQ(tier_.blocks_.count(chain[i]), 1u);
  for (int i : {1, 2, 4}) tier_.blocks_.erase(chain[i]);  // these are in memory only
  EXPECT_EQ(node_.Match(chain), 6u);
}

TEST_F(KvNodeTierTest, AGetInMemoryAnswersAtOnce) {
  ASSERT_TRUE(node_.PutChain(Chain(1, 3), kSize).ok());
  Get get;
  Start({Chain(1, 3)[0], Key(77)}, &get);
  EXPECT_EQ(get.answers, 1);
  EXPECT_TRUE(absl::IsNotFound(get.response.statuses[1]));
  EXPECT_EQ(tier_.fetches_, 0);
}

TEST_F(KvNodeTierTest, AGetWaitsForTheDiskAndPinsWhatComes) {
  const std::vector<BlockKey> chain = Demoted(3);
  const std::vector<BlockKey> other = Chain(2, kFit);
  Get get;
  Start({chain[0], other[0], chain[1], Key(77)}, &get);
  EXPECT_EQ(get.answers, 0);
  EXPECT_EQ(tier_.fetches_, 2);
  tier_.Answer();
  EXPECT_EQ(get.answers, 0);
  tier_.Answer();
  ASSERT_EQ(get.answers, 1);
  ASSERT_TRUE(get.status.ok());
  ExpectBytes(get, 0, chain[0]);
  ExpectBytes(get, 1, other[0]);
  ExpectBytes(get, 2, chain[1]);
  EXPECT_TRUE(absl::IsNotFound(get.response.statuses[3]));
  EXPECT_EQ(Promotions("ok"), 2);
  // And now it is in memory.
  Get again;
  Start({chain[0]}, &again);
  EXPECT_EQ(again.answers, 1);
  EXPECT_EQ(tier_.fetches_, 2);
}

TEST_F(KvNodeTierTest, TwoReadersShareOneRead) {
  const std::vector<BlockKey> chain = Demoted(1);
  Get a, b;
  Start({chain[0]}, &a);
  Start({chain[0], chain[0]}, &b);
  EXPECT_EQ(tier_.fetches_, 1);
  tier_.Answer();
  EXPECT_EQ(a.answers, 1);
  EXPECT_EQ(b.answers, 1);
  ExpectBytes(a, 0, chain[0]);
  ExpectBytes(b, 0, chain[0]);
  ExpectBytes(b, 1, chain[0]);
}

TEST_F(KvNodeTierTest, ADiskThatHangsCostsTheWaitOnly) {
  const std::vector<BlockKey> chain = Demoted(2);
  Get get;
  Start({chain[0], chain[1], Chain(2, kFit)[0]}, &get);
  tier_.Answer();
  node_.clock().Advance(milliseconds(1900));
  node_.node().Tick();
  EXPECT_EQ(get.answers, 0);
  node_.clock().Advance(milliseconds(200));
  node_.node().Tick();
  ASSERT_EQ(get.answers, 1);
  ExpectBytes(get, 0, chain[0]);
  EXPECT_TRUE(absl::IsNotFound(get.response.statuses[1]));
  ExpectBytes(get, 2, Chain(2, kFit)[0]);
  tier_.Answer();  // late, but good for the next one
  EXPECT_EQ(get.answers, 1);
  EXPECT_TRUE(node_.Get(chain[1]));
  EXPECT_EQ(node_.Stats().pinned_bytes, 0u);
}

TEST_F(KvNodeTierTest, WaitsAtMostHalfOfTheCallersTime) {
  const std::vector<BlockKey> chain = Demoted(1);
  Get get;
  Start({chain[0]}, &get, milliseconds(400));
  EXPECT_EQ(tier_.until_, node_.clock().Now() + milliseconds(200));
  node_.clock().Advance(milliseconds(201));
  node_.node().Tick();
  EXPECT_EQ(get.answers, 1);
  tier_.AnswerAll();
}

TEST_F(KvNodeTierTest, AReadThatFailsIsAMiss) {
  const std::vector<BlockKey> chain = Demoted(3);
  Get get;
  Start(chain, &get);
  tier_.Answer(absl::DataLossError("corrupt"));
  tier_.Answer(absl::UnavailableError("I/O error"));
  tier_.Answer(absl::DeadlineExceededError("late"));
  ASSERT_EQ(get.answers, 1);
  for (const absl::Status& s : get.response.statuses) EXPECT_TRUE(absl::IsNotFound(s)) << s;
  EXPECT_EQ(Promotions("corrupt"), 1);
  EXPECT_EQ(Promotions("disk_error"), 1);
  EXPECT_EQ(Promotions("late"), 1);
}

TEST_F(KvNodeTierTest, NoRoomIsAMiss) {
  const std::vector<BlockKey> chain = Demoted(2);
  std::vector<kv::BlockLocation> pins;
  for (const BlockKey& key : Chain(2, kFit)) pins.push_back(*node_.Pin(key));
  EXPECT_TRUE(node_.Release(pins.back()).ok());
  pins.pop_back();
  Get get;
  Start(chain, &get);
  tier_.AnswerAll();
  ASSERT_EQ(get.answers, 1);
  EXPECT_TRUE(get.response.statuses[0].ok()) << "there is room for one";
  EXPECT_TRUE(absl::IsNotFound(get.response.statuses[1]));
  EXPECT_EQ(Promotions("no_room"), 1);
  for (const kv::BlockLocation& pin : pins) EXPECT_TRUE(node_.Release(pin).ok());
}

TEST_F(KvNodeTierTest, AReaderThatLeavesLeaksNothing) {
  const std::vector<BlockKey> chain = Demoted(2);
  Get get;
  Start(chain, &get);
  kv::CloseSessionResponse response;
  ASSERT_TRUE(node_.node().Handle(kv::CloseSessionRequest{node_.session()}, &response).ok());
  tier_.AnswerAll();
  EXPECT_EQ(get.answers, 1);
  EXPECT_EQ(node_.Stats().pinned_bytes, 0u);
}

TEST_F(KvNodeTierTest, EraseReachesTheTierAndReadsUnderWay) {
  const std::vector<BlockKey> chain = Demoted(2);
  EXPECT_TRUE(node_.Erase(chain[1]).ok());
  EXPECT_FALSE(node_.Exists(chain[1]));
  Get get;
  Start({chain[0]}, &get);
  auto copy = tier_.blocks_;
  EXPECT_TRUE(node_.Erase(chain[0]).ok());
  tier_.blocks_ = copy;
  tier_.Answer();
  EXPECT_TRUE(absl::IsNotFound(get.response.statuses[0]));
  tier_.blocks_.clear();
  EXPECT_FALSE(node_.Exists(chain[0]));
  EXPECT_TRUE(absl::IsNotFound(node_.Erase(chain[0])));
}

TEST_F(KvNodeTierTest, ACorruptCopyInMemoryLeavesTheOneOnDisk) {
  const std::vector<BlockKey> chain = Demoted(1);
  Get get;
  Start({chain[0]}, &get);
  tier_.Answer();
  ExpectBytes(get, 0, chain[0]);
  node_.arena()[get.response.locations[0].offset] ^= 1;
  EXPECT_TRUE(node_.Erase(chain[0], kv::EraseReason::kCorrupt).ok());
  Get again;
  Start({chain[0]}, &again);
  tier_.Answer();
  ExpectBytes(again, 0, chain[0]);
}

TEST_F(KvNodeTierTest, TenantsDoNotMeetOnDisk) {
  SsdTierOptions options;
  options.capacity = 64 << 20;
  options.admit_all = true;
  MemDisk disk;
  FakeClock clock;
  auto ssd = *SsdTier::Create(options, disk.Open(), &clock, nullptr);
  TestNode node({}, kArena, ssd.get(), nullptr);
  const uint64_t a = node.Open("client", "a"), b = node.Open("client", "b");
  const std::vector<BlockKey> chain = Chain(1, 2);
  ASSERT_TRUE(node.PutChain(chain, kSize, a).ok());
  ASSERT_TRUE(node.PutChain(Chain(2, kFit), kSize).ok());
  ssd->WaitIdle();
  EXPECT_TRUE(ssd->Contains({DigestOfTenant("a"), chain[0]}));
  kv::MatchPrefixResponse response;
  ASSERT_TRUE(node.node().Handle(kv::MatchPrefixRequest{a, chain}, &response).ok());
  EXPECT_EQ(response.matched, 2u);
  ASSERT_TRUE(node.node().Handle(kv::MatchPrefixRequest{b, chain}, &response).ok());
  EXPECT_EQ(response.matched, 0u);
  kv::ExistsResponse exists;
  ASSERT_TRUE(node.node().Handle(kv::ExistsRequest{b, chain}, &exists).ok());
  EXPECT_FALSE(exists.stored[0]);
  EXPECT_FALSE(node.Pin(chain[0], b).has_value());
  ssd->Shutdown(clock.Now());
}

// Random operations on a node over a disk that fails, corrupts and loses power. Whatever is found
// has the right bytes; what was erased is not found; nothing leaks.
class TierWalk {
 public:
  explicit TierWalk(uint64_t seed) : rng_(seed) {
    options_.capacity = 2 << 20;
    options_.admit_all = true;
    options_.pause_after_error = Duration(0);  // the clock stands still
    options_.readers = 2;
    for (int c = 0; c < 12; ++c) chains_.push_back(Chain(c, 8));
    Open();
  }
  ~TierWalk() { Close(); }

  void Step() {
    const std::vector<BlockKey>& chain = chains_[rng_() % chains_.size()];
    const BlockKey& key = chain[rng_() % chain.size()];
    switch (rng_() % 24) {
      case 0:
        if (rng_() % 6 == 0) Restart(/*die=*/true);
        return;
      case 1:
        if (rng_() % 6 == 0) Restart(/*die=*/false);
        return;
      case 2:
        return disk_.CorruptData({DigestOfTenant(""), key});
      case 3:
        return disk_.CorruptMeta({DigestOfTenant(""), key});
      case 4:
        disk_.FailWrites(rng_() % 4 != 0 ? absl::OkStatus() : absl::ResourceExhaustedError("full"));
        return;
      case 5:
        return disk_.FailReads(rng_() % 4 != 0 ? absl::OkStatus() : absl::UnavailableError("I/O"));
      case 6:
      case 7:
        node_->Erase(key).IgnoreError();
        erased_.insert(key);
        EXPECT_FALSE(node_->Exists(key)) << "erased";
        return;
      case 8:
        return tier_->WaitIdle();
      case 9:
        tier_->Scrub(0);
        return;
      default:
        return rng_() % 2 == 0 ? Put(chain) : Get(chain);
    }
  }

  void End() {
    for (const auto& chain : chains_) {
      for (const BlockKey& key : chain) node_->Erase(key).IgnoreError();
    }
    tier_->WaitIdle();
    const kv::StatsResponse s = node_->Stats();
    EXPECT_EQ(s.used_bytes, 0u);
    EXPECT_EQ(s.pinned_bytes, 0u);
    for (int k = 0; k < kNumBlockKinds; ++k) {
      EXPECT_EQ(s.kind_blocks[k], 0u);
      EXPECT_EQ(s.tier.kind_blocks[k], 0u);
      EXPECT_EQ(s.tier.kind_bytes[k], 0u);
    }
    EXPECT_EQ(s.tier.queued_bytes, 0u);
    EXPECT_GT(from_disk_ + static_cast<int>(s.tier.promoted_blocks), 20)
        << "the walk never needed the disk";
  }

 private:
  void Open() {
    tier_ = *SsdTier::Create(options_, disk_.Open(), &clock_, nullptr);
    node_ = std::make_unique<TestNode>(KvNodeOptions{}, kArena / 2, tier_.get(), nullptr);
  }
  void Close() {
    tier_->Shutdown(clock_.Now());
    from_disk_ += static_cast<int>(tier_->stats().promoted_blocks);
    node_.reset();
    tier_.reset();
  }
  void Restart(bool die) {
    Close();
    if (die) {
      disk_.LoseUnflushed();
      erased_.clear();  // an erasure that was not flushed is forgotten as well
    }
    Open();
  }
  void Put(const std::vector<BlockKey>& chain) {
    for (size_t i = 0; i < chain.size(); ++i) {
      const absl::Status put =
          node_->Put({chain[i], i == 0 ? BlockKey{} : chain[i - 1], BlockKind::kPage, kSize});
      EXPECT_TRUE(put.ok() || absl::IsAlreadyExists(put)) << put;
      erased_.erase(chain[i]);
    }
  }
  void Get(const std::vector<BlockKey>& chain) {
    node_->Match(chain);
    CallBarrier barrier;
    barrier.Add();
    kv::GetStartResponse response;
    node_->node().StartGet({node_->session(), chain, seconds(10)}, std::chrono::hours(1),
                           [&](const absl::Status& status, const kv::GetStartResponse& answer) {
                             EXPECT_TRUE(status.ok()) << status;
                             response = answer;
                             barrier.Done();
                           });
    barrier.Wait();
    for (size_t i = 0; i < chain.size(); ++i) {
      if (!response.statuses[i].ok()) continue;
      EXPECT_EQ(erased_.count(chain[i]), 0u) << "erased and found";
      EXPECT_EQ(node_->Read(response.locations[i]), Bytes(chain[i], kSize));
      EXPECT_TRUE(node_->Release(response.locations[i]).ok());
    }
  }

  std::mt19937_64 rng_;
  FakeClock clock_;
  MemDisk disk_;
  SsdTierOptions options_;
  std::vector<std::vector<BlockKey>> chains_;
  std::set<BlockKey> erased_;
  std::unique_ptr<SsdTier> tier_;
  std::unique_ptr<TestNode> node_;
  int from_disk_ = 0;
};

TEST(TierModel, RandomOperationsOverABadDisk) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    TierWalk walk(seed);
    for (int step = 0; step < 400; ++step) walk.Step();
    walk.End();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace oscarkv
