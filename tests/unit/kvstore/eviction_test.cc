#include "kvstore/core/eviction.h"

#include <gtest/gtest.h>

#include <deque>
#include <set>

namespace oscarkv {
namespace {

// Entries by number.
class Entries {
 public:
  EvictionEntry* Get(int n) {
    while (entries_.size() <= static_cast<size_t>(n)) {
      entries_.emplace_back();
      entries_.back().key_hash = 1000 + entries_.size() - 1;
      entries_.back().last_use = Time(std::chrono::seconds(entries_.size()));
    }
    return &entries_[n];
  }
  int NumberOf(const EvictionEntry* e) const {
    return e == nullptr ? -1 : static_cast<int>(e->key_hash) - 1000;
  }

 private:
  std::deque<EvictionEntry> entries_;
};

std::vector<int> Drain(EvictionPolicy* policy, const Entries& entries) {
  std::vector<int> order;
  while (EvictionEntry* e = policy->NextVictim()) order.push_back(entries.NumberOf(e));
  return order;
}

TEST(LruTest, TheLeastRecentlyUsedGoesFirst) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kLru);
  for (int i = 0; i < 4; ++i) policy->OnInsert(e.Get(i));
  policy->OnHit(e.Get(0));
  policy->OnHit(e.Get(2));
  policy->OnErase(e.Get(3));
  EXPECT_EQ(Drain(policy.get(), e), (std::vector<int>{1, 0, 2}));
  EXPECT_EQ(policy->Coldest(), Time::max());
}

TEST(LruTest, ReturnsToTheFrontUnlessHitMeanwhile) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kLru);
  for (int i = 0; i < 3; ++i) policy->OnInsert(e.Get(i));
  EvictionEntry* cold = policy->NextVictim();
  EvictionEntry* hot = policy->NextVictim();
  cold->aside = hot->aside = true;
  policy->OnHit(hot);
  cold->aside = hot->aside = false;
  policy->Return(hot);
  policy->Return(cold);
  EXPECT_EQ(Drain(policy.get(), e), (std::vector<int>{0, 2, 1}));
}

TEST(S3FifoTest, WhatIsNotUsedTwiceGoesInOrderOfArrival) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kS3Fifo);
  for (int i = 0; i < 5; ++i) policy->OnInsert(e.Get(i));
  for (int i = 0; i < 5; ++i) policy->OnHit(e.Get(i));  // the read by design
  policy->OnHit(e.Get(1));                              // and one that says it is shared
  EXPECT_EQ(Drain(policy.get(), e), (std::vector<int>{0, 2, 3, 4, 1}));
}

TEST(S3FifoTest, AScanDoesNotPushOutWhatIsUsed) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kS3Fifo);
  std::set<int> hot;
  for (int i = 0; i < 20; ++i) {
    policy->OnInsert(e.Get(i));
    policy->OnHit(e.Get(i));
    policy->OnHit(e.Get(i));
    hot.insert(i);
  }
  for (int i = 100; i < 300; ++i) {  // room for 40
    policy->OnInsert(e.Get(i));
    if (i >= 120) {
      EXPECT_EQ(hot.count(e.NumberOf(policy->NextVictim())), 0) << "at " << i;
    }
  }
}

TEST(S3FifoTest, AGhostReturnsToTheMainQueue) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kS3Fifo);
  for (int i = 0; i < 10; ++i) policy->OnInsert(e.Get(i));
  EvictionEntry* victim = policy->NextVictim();
  ASSERT_EQ(e.NumberOf(victim), 0);
  policy->OnInsert(victim);  // put again soon after: it was wanted
  const std::vector<int> order = Drain(policy.get(), e);
  EXPECT_EQ(order.back(), 0);
}

TEST(S3FifoTest, ReturnedEntriesAreCandidatesAgainAtOnce) {
  Entries e;
  auto policy = MakeEvictionPolicy(EvictionKind::kS3Fifo);
  for (int i = 0; i < 3; ++i) policy->OnInsert(e.Get(i));
  EvictionEntry* first = policy->NextVictim();
  policy->Return(first);
  EXPECT_EQ(Drain(policy.get(), e), (std::vector<int>{0, 1, 2}));
}

TEST(EvictionTest, NamesOfPolicies) {
  EXPECT_EQ(*ParseEvictionKind("lru"), EvictionKind::kLru);
  EXPECT_EQ(*ParseEvictionKind("s3fifo"), EvictionKind::kS3Fifo);
  const auto bad = ParseEvictionKind("mru");
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(bad.status().message().find("mru"), absl::string_view::npos);
}

}  // namespace
}  // namespace oscarkv
