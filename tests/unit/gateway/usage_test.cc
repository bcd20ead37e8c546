#include "gateway/usage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace oscarkv::gateway {
namespace {

struct Case {
  const char* name;
  uint64_t tokens;
  uint64_t paged;  // of them, in 2-bit pages
};

TEST(EstimateKvBytes, SinkAndWindowStayInBf16) {
  const Case cases[] = {
      {"None", 0, 0},
      {"One", 1, 0},
      {"Sink", 64, 0},
      {"Window", 320, 0},
      {"WindowAndRing", 383, 0},
      {"FirstPage", 384, 64},
      {"BeforeTheSecond", 447, 64},
      {"SecondPage", 448, 128},
      {"Long", 64 + 256 + 640, 640},
  };
  WorkerInfo model;
  model.kv_bytes_per_token_bf16 = 1000;
  model.kv_bytes_per_token_stored = 100;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Usage usage;
    EstimateKvBytes(model, c.tokens, &usage);
    EXPECT_EQ(usage.kv_bytes_bf16, c.tokens * 1000);
    EXPECT_EQ(usage.kv_bytes_stored, (c.tokens - c.paged) * 1000 + c.paged * 100);
  }
}

TEST(AddTransfers, SumsBytesAndKeepsEachLaneOnce) {
  Usage usage;
  AddTransfers({10, 1, {"posix"}}, {5, 1, {"tcp", "posix"}}, &usage);
  AddTransfers({1, 1, {"grpc"}}, {2, 1, {"tcp"}}, &usage);
  EXPECT_EQ(usage.bytes_put, 11u);
  EXPECT_EQ(usage.bytes_got, 7u);
  EXPECT_THAT(usage.lanes, ::testing::ElementsAre("tcp", "posix", "grpc"));
}

}  // namespace
}  // namespace oscarkv::gateway
