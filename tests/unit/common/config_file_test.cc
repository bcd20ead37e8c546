#include "common/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace oscarkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConfigFileTest : public ::testing::Test {
 protected:
  ConfigFileTest() {
    table_.AddBytes("capacity", &capacity_, 1, 1 << 30, "Memory.");
    table_.AddBool("fast", &fast_, "A flag.");
    table_.AddStrings("nodes", &nodes_, "LIST", "Nodes.");
    table_.AddRepeated("stop", &stops_, "TEXT", "Texts.");
  }
  absl::Status Apply(absl::string_view text) {
    return ApplyConfig(table_, "f.conf", text,
                       [this](const std::string& name) { return given_.count(name) != 0; });
  }

  uint64_t capacity_ = 7;
  bool fast_ = false;
  std::vector<std::string> nodes_, stops_;
  std::set<std::string> given_;
  OptionTable table_;
};

TEST_F(ConfigFileTest, SetsWhatTheLinesSay) {
  ASSERT_TRUE(Apply("# a comment\n\n  capacity = 2KiB\r\nfast=true\nnodes = \"a:1, b:2\"\n"
                    "stop = a # b\nstop =\tc=d")
                  .ok());
  EXPECT_EQ(capacity_, 2048u);
  EXPECT_TRUE(fast_);
  EXPECT_THAT(nodes_, ElementsAre("a:1", "b:2"));
  EXPECT_THAT(stops_, ElementsAre("a # b", "c=d"));
}

TEST_F(ConfigFileTest, TheCommandLineWins) {
  given_ = {"capacity"};
  ASSERT_TRUE(Apply("capacity = 2KiB\nfast = true\n").ok());
  EXPECT_EQ(capacity_, 7u);
  EXPECT_TRUE(fast_);
}

TEST_F(ConfigFileTest, RefusalsNameFileLineAndReason) {
  const std::vector<std::pair<std::string, const char*>> bad = {
      {"\n\ncapacity", "f.conf, line 3: expected `name = value`"},
      {"= 5", "f.conf, line 1: expected `name = value`"},
      {"[section]", "f.conf, line 1: expected `name = value`"},
      {"# x\nbogus = 1", "f.conf, line 2: unknown option 'bogus'"},
      {"--capacity = 5", "unknown option '--capacity'"},
      {"capacity = 2\ncapacity = 2", "f.conf, line 2: option 'capacity' came before"},
      {"capacity = much", "f.conf, line 1: --capacity=much: expected a size"},
      {"fast = yes", "f.conf, line 1: --fast=yes: expected true or false"},
      {std::string("capacity = 1\0", 13), "f.conf, line 1: a control character"},
      {std::string(kMaxConfigBytes + 1, '\n'), "f.conf: 1048577 bytes: expected"},
  };
  for (const auto& [text, want] : bad) {
    const absl::Status status = Apply(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << want;
    EXPECT_THAT(std::string(status.message()), HasSubstr(want));
  }
}

TEST_F(ConfigFileTest, ARefusedValueCountsThoughTheCommandLineWins) {
  given_ = {"capacity"};
  EXPECT_FALSE(Apply("capacity = 1\ncapacity = 1").ok());
}

TEST_F(ConfigFileTest, TheTemplateListsEveryOptionAndChangesNothing) {
  const std::string text = ConfigTemplate(table_);
  for (const OptionRow& row : table_.rows()) {
    EXPECT_THAT(text, HasSubstr("\n#" + row.name + " = " + row.default_value + "\n"));
  }
  ASSERT_TRUE(Apply(text).ok());
  EXPECT_EQ(capacity_, 7u);
}

}  // namespace
}  // namespace oscarkv
