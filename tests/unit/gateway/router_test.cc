#include "gateway/router.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace oscarkv::gateway {
namespace {

WorkerLoad Load(size_t index, uint32_t in_flight = 0, uint64_t tokens = 0, uint32_t foreign = 0) {
  WorkerLoad w;
  w.index = index;
  w.endpoint = "10.0.0." + std::to_string(index) + ":7000";
  w.in_flight = in_flight;
  w.in_flight_tokens = tokens;
  w.foreign = foreign;
  return w;
}

WorkerLoad Pool(WorkerLoad w, uint64_t pages, uint64_t free) {
  w.pool_pages = pages;
  w.pool_pages_free = free;
  return w;
}

constexpr RouteRequest kRequest = {
    .prompt_tokens = 1000, .cached_tokens = 0, .max_tokens = 100, .affinity = 7};

struct Case {
  const char* name;
  std::vector<WorkerLoad> workers;
  size_t expected;
};

TEST(PrefixAwareRouter, PrefillGoesWhereTheLeastIsToBeComputed) {
  const Case cases[] = {
      {"Only", {Load(3)}, 3},
      {"FewerTokens", {Load(0, 1, 5000), Load(1, 3, 200)}, 1},
      {"OthersRequestsCountAsThisOne", {Load(0, 0, 0, 2), Load(1, 1, 1500)}, 1},
      {"AndAreAdded", {Load(0, 1, 600, 1), Load(1, 1, 1500)}, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_EQ(PrefixAwareRouter().PickPrefill({c.workers, {}, 0}, kRequest).value(), c.expected);
  }
}

TEST(PrefixAwareRouter, AttentionGoesWhereTheFewestSequencesAre) {
  const Case cases[] = {
      {"Fewest", {Load(0, 2), Load(1, 1)}, 1},
      {"OthersRequestsCount", {Load(0, 0, 0, 3), Load(1, 1, 0, 1)}, 1},
      {"FullPoolComesLast", {Pool(Load(0, 0), 100, 5), Pool(Load(1, 9), 100, 50)}, 1},
      {"AllPoolsFull", {Pool(Load(0, 5), 100, 5), Pool(Load(1, 4), 100, 3)}, 1},
      {"UnknownPoolHasRoom", {Load(0, 0), Pool(Load(1, 1), 100, 50)}, 0},
      {"PoolJustLargeEnough", {Pool(Load(0, 0), 18, 18), Pool(Load(1, 1), 100, 50)}, 0},
      {"PoolOnePageShort", {Pool(Load(0, 0), 18, 17), Pool(Load(1, 1), 100, 50)}, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_EQ(PrefixAwareRouter().PickAttention({{}, c.workers, 0}, kRequest).value(), c.expected);
  }
}

TEST(PrefixAwareRouter, EqualPrefixesMeetAndDifferentOnesSpread) {
  const std::vector<WorkerLoad> workers = {Load(0), Load(1), Load(2), Load(3)};
  std::map<size_t, int> hits;
  for (uint64_t affinity = 1; affinity <= 400; ++affinity) {
    RouteRequest r = kRequest;
    r.affinity = affinity * 0x9e3779b97f4a7c15u;
    const size_t first = PrefixAwareRouter().PickPrefill({workers, {}, 0}, r).value();
    EXPECT_EQ(PrefixAwareRouter().PickPrefill({workers, {}, 99}, r).value(), first);
    ++hits[first];
    // Another worker's leaving moves only the prefixes it had.
    std::vector<WorkerLoad> fewer = workers;
    const size_t gone = (first + 1) % workers.size();
    fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(gone));
    EXPECT_EQ(PrefixAwareRouter().PickPrefill({fewer, {}, 0}, r).value(), first);
  }
  ASSERT_EQ(hits.size(), 4u);
  for (const auto& [worker, count] : hits) EXPECT_GT(count, 50) << worker;
}

TEST(PrefixAwareRouter, CachedPromptsOfOthersAreCheap) {
  // Two foreign requests on worker 0 weigh as much as what this request itself must compute.
  RouteRequest r = kRequest;
  r.cached_tokens = 990;
  EXPECT_EQ(
      PrefixAwareRouter().PickPrefill({{Load(0, 0, 0, 2), Load(1, 1, 100)}, {}, 0}, r).value(), 0u);
  r.cached_tokens = 0;
  EXPECT_EQ(
      PrefixAwareRouter().PickPrefill({{Load(0, 0, 0, 2), Load(1, 1, 100)}, {}, 0}, r).value(), 1u);
}

TEST(RoundRobinRouter, TakesTurnsByIndex) {
  const std::vector<WorkerLoad> workers = {Load(4), Load(7), Load(9)};
  std::vector<size_t> prefill, attention;
  for (uint64_t i = 0; i < 6; ++i) {
    prefill.push_back(RoundRobinRouter().PickPrefill({workers, {}, i}, kRequest).value());
    attention.push_back(RoundRobinRouter().PickAttention({{}, workers, i}, kRequest).value());
  }
  EXPECT_EQ(prefill, (std::vector<size_t>{4, 7, 9, 4, 7, 9}));
  EXPECT_EQ(attention, prefill);
}

TEST(Router, NoWorkerIsUnavailable) {
  for (const char* name : {"prefix-aware", "round-robin"}) {
    SCOPED_TRACE(name);
    const auto router = MakeRouter(name).value();
    EXPECT_EQ(router->PickPrefill({}, kRequest).status(),
              absl::UnavailableError("no prefill worker is available"));
    EXPECT_EQ(router->PickAttention({}, kRequest).status(),
              absl::UnavailableError("no attention worker is available"));
  }
  EXPECT_EQ(MakeRouter("best").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace oscarkv::gateway
