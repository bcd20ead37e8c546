#include "common/trace.h"

#include <gtest/gtest.h>

#include <thread>

namespace oscarkv {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";

TEST(TraceIdOf, ReadsValidHeaders) {
  for (const char* header : {
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
           "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later",
       }) {
    EXPECT_EQ(TraceIdOf(header), kTrace) << header;
  }
}

TEST(TraceIdOf, IgnoresInvalidOnes) {
  for (const char* header : {
           "",
           "00",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
           "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
       }) {
    EXPECT_EQ(TraceIdOf(header), std::nullopt) << header;
  }
}

TEST(MakeTraceparent, IsReadBackAndNamesAnotherSpanEachTime) {
  const std::string first = MakeTraceparent(kTrace), second = MakeTraceparent(kTrace);
  EXPECT_EQ(TraceIdOf(first), kTrace);
  EXPECT_NE(first, second);
  const std::string id = NewTraceId();
  EXPECT_EQ(TraceIdOf(MakeTraceparent(id)), id);
  EXPECT_NE(id, NewTraceId());
}

TEST(TraceScope, NestsAndBelongsToItsThread) {
  EXPECT_EQ(CurrentTrace(), "");
  {
    const TraceScope outer("a");
    EXPECT_EQ(CurrentTrace(), "a");
    {
      const TraceScope inner("b");
      EXPECT_EQ(CurrentTrace(), "b");
      std::thread([] { EXPECT_EQ(CurrentTrace(), ""); }).join();
      const TraceScope none("");
      EXPECT_EQ(CurrentTrace(), "");
    }
    EXPECT_EQ(CurrentTrace(), "a");
  }
  EXPECT_EQ(CurrentTrace(), "");
}

}  // namespace
}  // namespace oscarkv
