#include "common/log.h"

#include <algorithm>
#include <string>

#include "common/trace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

class LogTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(InitLog("info", "tester").ok()); }
  static std::string Captured(LogLevel level, std::initializer_list<LogField> fields = {}) {
    ::testing::internal::CaptureStderr();
    Log(level, "something happened", fields);
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, NamesTheTraceThatItIsWrittenFor) {
  const TraceScope scope("4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_THAT(Captured(LogLevel::kInfo, {{"tokens", "12"}}),
              EndsWith("happened tokens=12 trace=4bf92f3577b34da6a3ce929d0e0e4736\n"));
  EXPECT_THAT(Captured(LogLevel::kInfo, {{"trace", "other"}, {"tokens", "12"}}),
              EndsWith("happened trace=other tokens=12\n"));
}

TEST_F(LogTest, OneLineWithRoleAndFields) {
  const std::string line = Captured(LogLevel::kInfo, {{"request", "r1"}, {"tokens", "12"}});
  EXPECT_THAT(line, HasSubstr(" I tester["));
  EXPECT_THAT(line, EndsWith("something happened request=r1 tokens=12\n"));
}

// Values come from peers and prompts: none may forge a line or a field.
TEST_F(LogTest, ValuesCannotForgeLinesOrFields) {
  const std::string line =
      Captured(LogLevel::kWarn,
               {{"a", "x\ny error=1"}, {"b", "say \"hi\" \\"}, {"c", ""}, {"d", "\x1b[31m\r"}});
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  EXPECT_THAT(line, HasSubstr("a=\"x\\ny error=1\" b=\"say \\\"hi\\\" \\\\\" c=\"\""));
  EXPECT_THAT(line, Not(HasSubstr("\x1b")));
}

TEST_F(LogTest, LevelsFilter) {
  EXPECT_EQ(Captured(LogLevel::kDebug), "");
  ASSERT_TRUE(InitLog("error", "tester").ok());
  EXPECT_EQ(Captured(LogLevel::kWarn), "");
  EXPECT_THAT(Captured(LogLevel::kError), HasSubstr(" E tester["));
  ASSERT_TRUE(InitLog("debug", "tester").ok());
  EXPECT_NE(Captured(LogLevel::kDebug), "");
  ASSERT_TRUE(InitLog("off", "tester").ok());
  EXPECT_EQ(Captured(LogLevel::kError), "");
}

TEST_F(LogTest, UnknownLevelIsAnError) {
  EXPECT_EQ(
      InitLog("loud", "tester"),
      absl::InvalidArgumentError("--log-level=loud: expected debug, info, warn, error or off"));
}

}  // namespace
}  // namespace oscarkv
