// SsdTier over a disk in memory: admission, bounds, failures of the disk, restarts.
#include "kvstore/tier/ssd_tier.h"

#include <gmock/gmock.h>

#include "kvstore/tier/record.h"
#include "tests/fakes/mem_disk_store.h"
#include "tier_support.h"

namespace oscarkv {
namespace {

using kvtest::Bytes;
using kvtest::Fetch;
using kvtest::Key;
using kvtest::Offer;
using kvtest::TierBlockOf;
using kvtest::TierKeyOf;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kBlock = 10'000;

class SsdTierTest : public testing::Test {
 protected:
  SsdTierTest() : metrics_(&registry_) {
    options_.capacity = 16 << 20;
    options_.flush_every = std::chrono::hours(1);  // WaitIdle flushes
  }
  SsdTier* Start() {
    absl::StatusOr<std::unique_ptr<SsdTier>> tier =
        SsdTier::Create(options_, disk_.Open(), &clock_, &metrics_);
    EXPECT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
    return tier_.get();
  }
  // As kill -9: nothing that was not flushed survives.
  void Die() {
    disk_.FailWrites(absl::UnavailableError("the process is dead"));
    tier_.reset();
    disk_.FailWrites(absl::OkStatus());
    disk_.LoseUnflushed();
  }
  double Drops(const char* reason) { return metrics_.drops.With({reason}).value(); }

  FakeClock clock_;
  MetricRegistry registry_;
  KvTierMetrics metrics_;
  MemDisk disk_;
  SsdTierOptions options_;
  std::unique_ptr<SsdTier> tier_;
};

TEST_F(SsdTierTest, ReturnsWhatItTook) {
  Tier* tier = Start();
  for (int n = 0; n < 50; ++n) Offer(tier, n, kBlock + n);
  for (int n = 0; n < 50; ++n) {
    EXPECT_TRUE(tier->Contains(TierKeyOf(n)));
    EXPECT_EQ(*Fetch(tier, TierKeyOf(n)), Bytes(Key(n), kBlock + n)) << "written or still queued";
  }
  tier_->WaitIdle();
  for (int n = 0; n < 50; ++n)
    EXPECT_EQ(*Fetch(tier, TierKeyOf(n)), Bytes(Key(n), kBlock + n)) << "written";
  EXPECT_FALSE(tier->Contains(TierKeyOf(99)));
  EXPECT_TRUE(absl::IsNotFound(Fetch(tier, TierKeyOf(99)).status()));
  const TierStats s = tier->stats();
  EXPECT_EQ(s.kind_blocks[0], 50u);
  EXPECT_EQ(s.kind_bytes[0], 50 * kBlock + 49 * 50 / 2);
  EXPECT_EQ(s.demoted_blocks, 50u);
  EXPECT_EQ(s.promoted_blocks, 100u);
  EXPECT_EQ(s.queued_bytes, 0u);
  EXPECT_EQ(s.unflushed_bytes, 0u);
}

TEST_F(SsdTierTest, KeepsAllOfABlock) {
  Tier* tier = Start();
  const std::string bytes = Bytes(Key(1), kBlock);
  TierBlock block = TierBlockOf(1, kBlock, "tenant");
  block.kind = BlockKind::kBf16;
  tier->Offer(block, true, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  tier_->WaitIdle();
  CallBarrier barrier;
  barrier.Add();
  ASSERT_TRUE(tier->Fetch(block.key, Time::max(),
                          [&](const absl::StatusOr<TierBlock>& got, absl::Span<const uint8_t>) {
                            EXPECT_TRUE(got.ok()) << got.status();
                            EXPECT_EQ(got->tenant, "tenant");
                            EXPECT_EQ(got->parent, block.parent);
                            EXPECT_EQ(got->kind, BlockKind::kBf16);
                            EXPECT_EQ(*got->slices, *block.slices);
                            barrier.Done();
                          }));
  barrier.Wait();
  EXPECT_FALSE(tier->Contains(TierKeyOf(1, "another tenant")));
}

TEST_F(SsdTierTest, TakesOnlyWhatIsReused) {
  Tier* tier = Start();
  Offer(tier, 1, kBlock, /*reused=*/false);
  EXPECT_FALSE(tier->Contains(TierKeyOf(1)));
  EXPECT_EQ(Drops("not_reused"), 1);
  Offer(tier, 1, kBlock, /*reused=*/false);  // it was computed again, so it is asked for
  EXPECT_TRUE(tier->Contains(TierKeyOf(1)));
  Offer(tier, 2, kBlock, /*reused=*/true);
  EXPECT_TRUE(tier->Contains(TierKeyOf(2)));
}

TEST_F(SsdTierTest, TakesAllWhenToldTo) {
  options_.admit_all = true;
  Tier* tier = Start();
  Offer(tier, 1, kBlock, /*reused=*/false);
  EXPECT_TRUE(tier->Contains(TierKeyOf(1)));
}

TEST_F(SsdTierTest, WritesABlockOnce) {
  Tier* tier = Start();
  for (int i = 0; i < 5; ++i) {
    Offer(tier, 1, kBlock);
    tier_->WaitIdle();
    EXPECT_TRUE(Fetch(tier, TierKeyOf(1)).ok());
  }
  EXPECT_EQ(disk_.written_bytes(), kBlock);
  EXPECT_EQ(metrics_.demotions.With({"present"}).value(), 4);
}

TEST_F(SsdTierTest, ASlowDiskCostsBlocksNotTime) {
  options_.queue_bytes = 5 * kBlock;
  Tier* tier = Start();
  disk_.HoldWrites(true);
  for (int n = 0; n < 20; ++n) Offer(tier, n, kBlock);  // returns although nothing is written
  EXPECT_EQ(Drops("queue_full"), 15);
  EXPECT_LE(tier->stats().queued_bytes, options_.queue_bytes);
  EXPECT_EQ(*Fetch(tier, TierKeyOf(3)), Bytes(Key(3), kBlock)) << "from the queue";
  disk_.HoldWrites(false);
  tier_->WaitIdle();
  EXPECT_EQ(tier->stats().kind_blocks[0], 5u);
}

TEST_F(SsdTierTest, KeepsTheWriteRate) {
  options_.write_rate = 10 * kBlock;
  Tier* tier = Start();
  int n = 0;
  for (; n < 2000; ++n) Offer(tier, n, kBlock);  // what a minute may have is taken at once
  tier_->WaitIdle();
  EXPECT_EQ(disk_.written_bytes(), 600 * kBlock);
  for (int s = 0; s < 10; ++s) {
    clock_.Advance(seconds(1));
    for (int i = 0; i < 50; ++i) Offer(tier, n++, kBlock);
  }
  tier_->WaitIdle();
  EXPECT_EQ(disk_.written_bytes(), 700 * kBlock);
  EXPECT_EQ(Drops("write_rate"), n - 700);
}

TEST_F(SsdTierTest, KeepsItsCapacityAndDropsTheOldest) {
  options_.capacity = 160 * (kBlock + 1024);
  options_.queue_bytes = 1 << 30;
  Tier* tier = Start();
  for (int n = 0; n < 1000; ++n) {
    Offer(tier, n, kBlock);
    if (n % 50 == 0) tier_->WaitIdle();
    EXPECT_LE(tier->stats().used_bytes, options_.capacity);
  }
  tier_->WaitIdle();
  EXPECT_LE(disk_.most_stored_bytes(), options_.capacity);
  const TierStats s = tier->stats();
  EXPECT_GE(s.kind_blocks[0], 140u);
  EXPECT_EQ(s.evicted_blocks + s.kind_blocks[0], 1000u);
  // What is left is the newest, without a gap.
  for (uint64_t n = 0; n < 1000; ++n)
    EXPECT_EQ(tier->Contains(TierKeyOf(n)), n >= 1000 - s.kind_blocks[0]) << n;
}

TEST_F(SsdTierTest, WhatWasUsedGetsASecondChance) {
  options_.capacity = 160 * (kBlock + 1024);
  options_.queue_bytes = 1 << 30;
  Tier* tier = Start();
  for (int n = 0; n < 1000; ++n) {
    Offer(tier, n, kBlock);
    tier_->WaitIdle();
    ASSERT_TRUE(tier->Touch(TierKeyOf(0))) << n;
  }
  EXPECT_EQ(*Fetch(tier, TierKeyOf(0)), Bytes(Key(0), kBlock));
  EXPECT_FALSE(tier->Contains(TierKeyOf(1)));
  EXPECT_LE(disk_.most_stored_bytes(), options_.capacity);
  EXPECT_GT(metrics_.evictions.With({"rescued"}).value(), 3);
}

TEST_F(SsdTierTest, CapacityHoldsWhenEverythingIsUsed) {
  options_.capacity = 160 * (kBlock + 1024);
  options_.queue_bytes = 1 << 30;
  Tier* tier = Start();
  for (int n = 0; n < 600; ++n) {
    Offer(tier, n, kBlock);
    tier_->WaitIdle();
    for (int k = 0; k <= n; ++k) tier->Touch(TierKeyOf(k));
  }
  EXPECT_LE(disk_.most_stored_bytes(), options_.capacity);
  EXPECT_LE(disk_.written_bytes(), 2 * 600 * kBlock)
      << "at most half of what is dropped is rescued";
  EXPECT_TRUE(tier->Contains(TierKeyOf(599)));
}

TEST_F(SsdTierTest, RefusesWhatNeverFits) {
  Tier* tier = Start();
  Offer(tier, 1, options_.capacity / 2);
  EXPECT_FALSE(tier->Contains(TierKeyOf(1)));
  EXPECT_EQ(Drops("too_large"), 1);
}

TEST_F(SsdTierTest, ATenantKeepsItsQuota) {
  options_.tenant_quota = 10 * kBlock;
  Tier* tier = Start();
  for (int n = 0; n < 20; ++n) {
    Offer(tier, n, kBlock, true, "greedy");
    Offer(tier, n, kBlock, true, n < 5 ? "modest" : "greedy");
    tier_->WaitIdle();
  }
  EXPECT_EQ(tier->stats().kind_blocks[0], 15u);
  EXPECT_GT(Drops("quota"), 0);
  tier->Erase(TierKeyOf(0, "greedy"));
  Offer(tier, 30, kBlock, true, "greedy");
  EXPECT_TRUE(tier->Contains(TierKeyOf(30, "greedy")));
}

TEST_F(SsdTierTest, FindsItsBlocksAfterARestart) {
  Tier* tier = Start();
  for (int n = 0; n < 30; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  for (int n = 30; n < 40; ++n) Offer(tier, n, kBlock);
  tier->Erase(TierKeyOf(7));
  tier->Shutdown(clock_.Now() + seconds(1));  // writes the queue
  tier = Start();
  EXPECT_EQ(tier->stats().adopted_blocks, 39u);
  for (int n = 0; n < 40; ++n) {
    if (n == 7) {
      EXPECT_FALSE(tier->Contains(TierKeyOf(n)));
    } else {
      EXPECT_EQ(*Fetch(tier, TierKeyOf(n)), Bytes(Key(n), kBlock));
    }
  }
}

TEST_F(SsdTierTest, DyingLosesWhatWasNotFlushedAndNothingElse) {
  Tier* tier = Start();
  for (int n = 0; n < 30; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  for (int n = 30; n < 40; ++n) Offer(tier, n, kBlock);
  EXPECT_GT(tier->stats().unflushed_bytes + tier->stats().queued_bytes, 0u);
  Die();
  tier = Start();
  EXPECT_EQ(tier->stats().adopted_blocks, 30u);
  for (int n = 0; n < 30; ++n) EXPECT_EQ(*Fetch(tier, TierKeyOf(n)), Bytes(Key(n), kBlock));
  EXPECT_FALSE(tier->Contains(TierKeyOf(35)));
}

TEST_F(SsdTierTest, ASmallerCapacityHoldsAfterARestart) {
  Tier* tier = Start();
  for (int n = 0; n < 1000; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  tier_.reset();
  options_.capacity = 4 << 20;
  tier = Start();
  EXPECT_GT(tier->stats().used_bytes, options_.capacity);
  Offer(tier, 2000, kBlock);
  tier_->WaitIdle();
  EXPECT_LE(tier->stats().used_bytes, options_.capacity);
  EXPECT_TRUE(tier->Contains(TierKeyOf(2000)));
  EXPECT_TRUE(tier->Contains(TierKeyOf(999)));
}

TEST_F(SsdTierTest, DamagedBytesNeverGetOut) {
  Tier* tier = Start();
  for (int n = 0; n < 4; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  disk_.CorruptData(TierKeyOf(1));
  disk_.CorruptMeta(TierKeyOf(2));
  EXPECT_TRUE(absl::IsDataLoss(Fetch(tier, TierKeyOf(1)).status()));
  EXPECT_TRUE(absl::IsDataLoss(Fetch(tier, TierKeyOf(2)).status()));
  EXPECT_FALSE(tier->Contains(TierKeyOf(1)));
  EXPECT_FALSE(tier->Contains(TierKeyOf(2)));
  EXPECT_EQ(metrics_.corrupt.With({"read"}).value(), 2);
  EXPECT_EQ(tier->stats().corrupt_blocks, 2u);
  EXPECT_TRUE(Fetch(tier, TierKeyOf(3)).ok());
  Offer(tier, 1, kBlock);  // computed again: may come back
  tier_->WaitIdle();
  EXPECT_EQ(*Fetch(tier, TierKeyOf(1)), Bytes(Key(1), kBlock));
}

TEST_F(SsdTierTest, ADamagedRecordIsNotAdopted) {
  Start();
  for (int n = 0; n < 4; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  tier_.reset();
  disk_.CorruptMeta(TierKeyOf(2));
  Tier* tier = Start();
  EXPECT_EQ(tier->stats().adopted_blocks, 3u);
  EXPECT_EQ(metrics_.corrupt.With({"start"}).value(), 1);
}

TEST_F(SsdTierTest, TheScrubberFindsDamage) {
  Tier* tier = Start();
  for (int n = 0; n < 20; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  EXPECT_EQ(tier_->Scrub(0), 0u);
  disk_.CorruptData(TierKeyOf(3));
  disk_.CorruptMeta(TierKeyOf(4));
  EXPECT_EQ(tier_->Scrub(0), 2u);
  EXPECT_EQ(metrics_.corrupt.With({"scrub"}).value(), 2);
  EXPECT_FALSE(tier->Contains(TierKeyOf(3)));
  tier_->WaitIdle();
  EXPECT_EQ(disk_.records(), 18u) << "and takes it off the disk";
  EXPECT_EQ(tier_->Scrub(0), 0u);
  EXPECT_GE(metrics_.scrubbed_bytes->value(), 56 * kBlock);
}

TEST_F(SsdTierTest, AFailingDiskPausesWritesNotReads) {
  Tier* tier = Start();
  for (int n = 0; n < 10; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  disk_.FailWrites(absl::UnavailableError("I/O error"));
  Offer(tier, 10, kBlock);
  tier_->WaitIdle();
  EXPECT_FALSE(tier->Contains(TierKeyOf(10)));
  EXPECT_FALSE(tier->stats().writable);
  EXPECT_EQ(metrics_.errors.With({"write", "unavailable"}).value(), 1);
  Offer(tier, 11, kBlock);  // not even tried
  EXPECT_EQ(Drops("disk_error"), 2);
  EXPECT_EQ(metrics_.errors.With({"write", "unavailable"}).value(), 1);
  for (int n = 0; n < 10; ++n) EXPECT_TRUE(Fetch(tier, TierKeyOf(n)).ok());

  clock_.Advance(options_.pause_after_error);
  Offer(tier, 12, kBlock);  // tried, in vain
  tier_->WaitIdle();
  EXPECT_FALSE(tier->stats().writable);
  disk_.FailWrites(absl::OkStatus());
  clock_.Advance(options_.pause_after_error);
  Offer(tier, 13, kBlock);
  tier_->WaitIdle();
  EXPECT_TRUE(tier->stats().writable);
  EXPECT_EQ(*Fetch(tier, TierKeyOf(13)), Bytes(Key(13), kBlock));
}

TEST_F(SsdTierTest, AFullDiskCostsTheOldest) {
  Tier* tier = Start();
  for (int n = 0; n < 800; ++n) Offer(tier, n, kBlock);
  tier_->WaitIdle();
  ASSERT_GT(disk_.generations().size(), 3u);
  const size_t before = disk_.generations().size();
  disk_.FailWrites(absl::ResourceExhaustedError("no space left on device"));
  Offer(tier, 900, kBlock);
  tier_->WaitIdle();
  EXPECT_EQ(disk_.generations().size(), before - 1);
  EXPECT_FALSE(tier->Contains(TierKeyOf(0)));
  EXPECT_TRUE(tier->Contains(TierKeyOf(799)));
  disk_.FailWrites(absl::OkStatus());
  clock_.Advance(options_.pause_after_error);
  Offer(tier, 901, kBlock);
  tier_->WaitIdle();
  EXPECT_TRUE(tier->Contains(TierKeyOf(901)));
}

TEST_F(SsdTierTest, AReadThatFailsKeepsTheBlock) {
  Tier* tier = Start();
  Offer(tier, 1, kBlock);
  tier_->WaitIdle();
  disk_.FailReads(absl::UnavailableError("I/O error"));
  EXPECT_TRUE(absl::IsUnavailable(Fetch(tier, TierKeyOf(1)).status()));
  EXPECT_EQ(metrics_.errors.With({"read", "unavailable"}).value(), 1);
  disk_.FailReads(absl::OkStatus());
  EXPECT_TRUE(Fetch(tier, TierKeyOf(1)).ok());
}

TEST_F(SsdTierTest, AReadThatComesTooLateIsNotDone) {
  Tier* tier = Start();
  Offer(tier, 1, kBlock);
  tier_->WaitIdle();
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(Fetch(tier, TierKeyOf(1), clock_.Now() - milliseconds(1)).status()));
}

TEST_F(SsdTierTest, EraseWinsOverAWriteUnderWay) {
  Tier* tier = Start();
  disk_.HoldWrites(true);
  Offer(tier, 1, kBlock);
  disk_.WaitHeldWrite();
  Offer(tier, 2, kBlock);
  tier->Erase(TierKeyOf(1));  // being written
  tier->Erase(TierKeyOf(2));  // queued
  EXPECT_FALSE(tier->Contains(TierKeyOf(1)));
  EXPECT_FALSE(tier->Contains(TierKeyOf(2)));
  Offer(tier, 1, kBlock);  // and again, behind the erasure
  disk_.HoldWrites(false);
  tier_->WaitIdle();
  EXPECT_EQ(*Fetch(tier, TierKeyOf(1)), Bytes(Key(1), kBlock));
  EXPECT_FALSE(tier->Contains(TierKeyOf(2)));
  EXPECT_EQ(disk_.records(), 1u);
  EXPECT_EQ(tier->stats().queued_bytes, 0u);
}

TEST_F(SsdTierTest, ShutdownEndsOpenReads) {
  options_.readers = 1;
  Tier* tier = Start();
  Offer(tier, 1, kBlock);
  Offer(tier, 2, kBlock);
  tier_->WaitIdle();
  disk_.HoldReads(true);
  CallBarrier barrier;
  absl::Status first, second;
  for (int n : {1, 2}) {
    barrier.Add();
    ASSERT_TRUE(
        tier->Fetch(TierKeyOf(n), Time::max(),
                    [&, n](const absl::StatusOr<TierBlock>& block, absl::Span<const uint8_t>) {
                      (n == 1 ? first : second) = block.status();
                      barrier.Done();
                    }));
  }
  disk_.WaitHeldRead();
  std::thread stops([&] { tier->Shutdown(clock_.Now()); });
  disk_.HoldReads(false);
  stops.join();
  barrier.Wait();
  EXPECT_TRUE(first.ok()) << first;
  EXPECT_TRUE(second.ok() || absl::IsCancelled(second)) << second;
  EXPECT_FALSE(tier->Fetch(TierKeyOf(1), Time::max(), nullptr));
}

TEST(TierRecord, ThePlacementIsKeptAndRecordsWithoutOneAreRead) {
  TierBlock block = TierBlockOf(5, 3000, "some tenant");
  block.placement = Key(77);
  std::string meta = EncodeTierRecord(block);
  EXPECT_EQ(ParseTierRecord(block.key, meta)->placement, Key(77));
  // As version 1 wrote it: no placement behind the 56 bytes of the head.
  meta.erase(56, 32);
  const uint32_t version = 1;
  std::memcpy(meta.data(), &version, 4);
  uint32_t crc = Crc32c(block.key.tenant.data(), block.key.tenant.size());
  crc = Crc32c(block.key.key.bytes.data(), 32, crc);
  crc = Crc32c(meta.data() + 8, meta.size() - 8, crc);
  std::memcpy(meta.data() + 4, &crc, 4);
  const auto old = ParseTierRecord(block.key, meta);
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_TRUE(old->placement.empty());
  EXPECT_EQ(old->tenant, "some tenant");
  EXPECT_EQ(*old->slices, *block.slices);
}

TEST(TierRecord, EveryFlippedBitIsFound) {
  const TierBlock block = TierBlockOf(5, 3000, "some tenant");
  const std::string meta = EncodeTierRecord(block);
  ASSERT_TRUE(ParseTierRecord(block.key, meta).ok());
  for (size_t bit = 0; bit < meta.size() * 8; ++bit) {
    std::string damaged = meta;
    damaged[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_FALSE(ParseTierRecord(block.key, damaged).ok()) << bit;
  }
  for (size_t size = 0; size < meta.size(); ++size)
    EXPECT_FALSE(ParseTierRecord(block.key, meta.substr(0, size)).ok()) << size;
  EXPECT_FALSE(ParseTierRecord(block.key, meta + "x").ok());
  EXPECT_TRUE(absl::IsDataLoss(ParseTierRecord(TierKeyOf(6, "some tenant"), meta).status()))
      << "another block's";
  EXPECT_TRUE(absl::IsDataLoss(ParseTierRecord(TierKeyOf(5, "another"), meta).status()));
}

}  // namespace
}  // namespace oscarkv
