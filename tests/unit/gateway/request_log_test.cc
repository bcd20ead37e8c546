#include "gateway/request_log.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace oscarkv::gateway {
namespace {

RequestRecord Record(int number) {
  RequestRecord record;
  record.request_id = absl::StrCat("r", number);
  record.trace_id = absl::StrCat("t", number % 2);
  return record;
}

TEST(RequestLog, KeepsTheLatest) {
  RequestLog log(3);
  for (int i = 0; i < 5; ++i) log.Add(Record(i));
  const auto latest = log.Latest(10);
  ASSERT_EQ(latest.size(), 3u);
  EXPECT_EQ(latest[0].request_id, "r4");
  EXPECT_EQ(latest[2].request_id, "r2");
  EXPECT_EQ(log.Latest(1).size(), 1u);
  EXPECT_FALSE(log.Find("r1").has_value());
  EXPECT_EQ(log.Find("r3")->request_id, "r3");
}

TEST(RequestLog, FindsTheLatestOfATrace) {
  RequestLog log(10);
  for (int i = 0; i < 5; ++i) log.Add(Record(i));
  EXPECT_EQ(log.Find("t0")->request_id, "r4");
  EXPECT_EQ(log.Find("t1")->request_id, "r3");
  EXPECT_FALSE(log.Find("").has_value());
}

}  // namespace
}  // namespace oscarkv::gateway
