#include "common/options.h"

#include <chrono>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::HasSubstr;

struct AllOptions {
  std::string text = "value";
  std::vector<std::string> list = {"a", "b"};
  int number = 7;
  int64_t wide = -5;
  uint64_t unsigned_wide = 9;
  float real = 0.96f;
  uint64_t bytes = 2ull << 30;
  Duration duration = milliseconds(250);
  bool flag = false;
  std::string choice = "exact";
};

OptionTable Table(AllOptions* o) {
  OptionTable t;
  t.AddString("text", &o->text, "WORD", "Text.");
  t.AddStrings("list", &o->list, "A,B", "A list.");
  t.AddInt("number", &o->number, 1, 65535, "A number.");
  t.AddInt64("wide", &o->wide, INT64_MIN, INT64_MAX, "A wide number.");
  t.AddUint64("unsigned-wide", &o->unsigned_wide, 0, UINT64_MAX, "An unsigned number.");
  t.AddFloat("real", &o->real, 0, 1, "A share.");
  t.AddBytes("bytes", &o->bytes, 4096, 1ull << 40, "A size.");
  t.AddDuration("duration", &o->duration, milliseconds(1), hours(2), "A time.");
  t.AddBool("flag", &o->flag, "A flag.");
  t.AddChoice("choice", &o->choice, {"exact", "canonical"}, "One of two.");
  return t;
}

TEST(OptionsTest, GoodValues) {
  AllOptions o;
  const OptionTable t = Table(&o);
  const auto set = [&](const char* name, const char* value) {
    const absl::Status s = t.Set(name, value);
    EXPECT_TRUE(s.ok()) << s;
  };
  set("text", "any = thing");
  EXPECT_EQ(o.text, "any = thing");
  set("text", "");
  EXPECT_EQ(o.text, "");
  set("list", "x, y ,,z");
  EXPECT_EQ(o.list, (std::vector<std::string>{"x", "y", "z"}));
  set("list", "");
  EXPECT_TRUE(o.list.empty());
  set("number", "1");
  EXPECT_EQ(o.number, 1);
  set("number", "65535");
  EXPECT_EQ(o.number, 65535);
  set("wide", "-9223372036854775808");
  EXPECT_EQ(o.wide, INT64_MIN);
  set("unsigned-wide", "18446744073709551615");
  EXPECT_EQ(o.unsigned_wide, UINT64_MAX);
  set("real", "0.5");
  EXPECT_EQ(o.real, 0.5f);
  set("real", "1");
  EXPECT_EQ(o.real, 1.0f);
  set("bytes", "64KiB");
  EXPECT_EQ(o.bytes, 65536u);
  set("duration", "1h");
  EXPECT_EQ(o.duration, hours(1));
  set("flag", "true");
  EXPECT_TRUE(o.flag);
  set("flag", "false");
  EXPECT_FALSE(o.flag);
  set("choice", "canonical");
  EXPECT_EQ(o.choice, "canonical");
}

TEST(OptionsTest, WrongValuesAreNamedAndChangeNothing) {
  struct Case {
    const char *name, *value, *error;
  };
  const std::vector<Case> cases = {
      {"number", "0", "--number=0: expected a number in 1..65535"},
      {"number", "65536", "--number=65536: expected a number in 1..65535"},
      {"number", "99999999999", "--number=99999999999"},
      {"number", "7.5", "--number=7.5"},
      {"number", "", "--number=: expected a number"},
      {"number", "seven", "--number=seven"},
      {"wide", "9223372036854775808", "--wide=9223372036854775808"},
      {"unsigned-wide", "-1", "--unsigned-wide=-1"},
      {"unsigned-wide", "18446744073709551616", "--unsigned-wide=18446744073709551616"},
      {"real", "1.01", "--real=1.01: expected a number in 0..1"},
      {"real", "nan", "--real=nan"},
      {"real", "inf", "--real=inf"},
      {"real", "1e99", "--real=1e99"},
      {"bytes", "4095", "--bytes=4095: expected a size in 4.00 KiB..1.00 TiB, such as 512MiB"},
      {"bytes", "2TiB", "--bytes=2TiB"},
      {"bytes", "64 apples", "--bytes=64 apples"},
      {"duration", "10", "--duration=10: expected a duration in 1ms..2h, such as 5s"},
      {"duration", "3h", "--duration=3h"},
      {"duration", "0s", "--duration=0s"},
      {"flag", "yes", "--flag=yes: expected true or false"},
      {"flag", "", "--flag=: expected true or false"},
      {"choice", "Exact", "--choice=Exact: expected exact|canonical"},
      {"choice", "", "--choice=: expected exact|canonical"},
      {"nummer", "1", "unknown option 'nummer'"},
  };
  for (const Case& c : cases) {
    AllOptions o;
    const OptionTable t = Table(&o);
    const absl::Status s = t.Set(c.name, c.value);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << c.name << " " << c.value;
    EXPECT_THAT(std::string(s.message()), HasSubstr(c.error));
    const AllOptions untouched;
    EXPECT_TRUE(o.number == untouched.number && o.wide == untouched.wide &&
                o.unsigned_wide == untouched.unsigned_wide && o.real == untouched.real &&
                o.bytes == untouched.bytes && o.duration == untouched.duration &&
                o.flag == untouched.flag && o.choice == untouched.choice)
        << c.name << " " << c.value;
  }
}

// What --help and docs/options.md show as the default can be put into a config file.
TEST(OptionsTest, DefaultsAreValuesOfTheirOptions) {
  AllOptions o;
  const OptionTable t = Table(&o);
  ASSERT_EQ(t.rows().size(), 10u);
  for (const OptionRow& row : t.rows()) {
    const absl::Status s = t.Set(row.name, row.default_value);
    EXPECT_TRUE(s.ok()) << s;
    EXPECT_EQ(row.is_flag, row.name == "flag");
  }
  const AllOptions defaults;
  EXPECT_EQ(o.list, defaults.list);
  EXPECT_EQ(o.real, defaults.real);
  EXPECT_EQ(o.bytes, defaults.bytes);
  EXPECT_EQ(o.duration, defaults.duration);
}

TEST(OptionsTest, Bytes) {
  const std::vector<std::pair<const char*, uint64_t>> good = {
      {"0", 0},
      {"4096", 4096},
      {"5B", 5},
      {"64KiB", 65536},
      {"64K", 65536},
      {"1MiB", 1 << 20},
      {"1M", 1 << 20},
      {"2GiB", 2ull << 30},
      {"2G", 2ull << 30},
      {"1TiB", 1ull << 40},
      {"1KB", 1000},
      {"1MB", 1000000},
      {"1.5GB", 1500000000},
      {"1TB", 1000000000000},
      {" 7 ", 7},
      {"0.5KiB", 512},
      {"2.00 GiB", 2ull << 30},
  };
  for (const auto& [text, want] : good) {
    uint64_t bytes = 1;
    EXPECT_TRUE(ParseBytes(text, &bytes).ok()) << text;
    EXPECT_EQ(bytes, want) << text;
  }
  for (const char* text : {"", " ", "KiB", "-1", "-1KiB", "1kib", "1XB", "1KiB2", "+1", ".", "1e30",
                           "inf", "nan", "1 2"}) {
    uint64_t bytes = 42;
    const absl::Status s = ParseBytes(text, &bytes);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(s.message()), HasSubstr("is not a size such as 4096, 64KiB")) << text;
    EXPECT_EQ(bytes, 42u);
  }
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.50 KiB");
  EXPECT_EQ(FormatBytes(3ull << 29), "1.50 GiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "16384.00 PiB");
}

TEST(OptionsTest, Durations) {
  const std::vector<std::pair<const char*, Duration>> good = {{"0s", Duration(0)},
                                                              {"5ns", Duration(5)},
                                                              {"5us", std::chrono::microseconds(5)},
                                                              {"250ms", milliseconds(250)},
                                                              {"5s", seconds(5)},
                                                              {"2m", minutes(2)},
                                                              {"1h", hours(1)},
                                                              {"1.5s", milliseconds(1500)},
                                                              {" 3s ", seconds(3)}};
  for (const auto& [text, want] : good) {
    Duration d(1);
    EXPECT_TRUE(ParseDuration(text, &d).ok()) << text;
    EXPECT_EQ(d, want) << text;
  }
  for (const char* text : {"", "5", "s", "-5s", "5d", "5sec", "1e30h", "infs"}) {
    Duration d(42);
    const absl::Status s = ParseDuration(text, &d);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(s.message()), HasSubstr("is not a duration such as 250ms"));
    EXPECT_EQ(d, Duration(42));
  }
  EXPECT_EQ(FormatDuration(Duration(0)), "0ns");
  EXPECT_EQ(FormatDuration(Duration(1500)), "1500ns");
  EXPECT_EQ(FormatDuration(milliseconds(250)), "250ms");
  EXPECT_EQ(FormatDuration(seconds(90)), "90s");
  EXPECT_EQ(FormatDuration(minutes(2)), "2m");
  EXPECT_EQ(FormatDuration(hours(3)), "3h");
  EXPECT_EQ(FormatDuration(Duration(1234567891)), "1.23s");
}

TEST(OptionsTest, Markdown) {
  AllOptions o;
  const std::string text = OptionsMarkdown(Table(&o));
  EXPECT_THAT(text, HasSubstr("| `--number` | `7` | 1..65535 | A number. |\n"));
  EXPECT_THAT(text, HasSubstr("| `--choice` | `exact` | exact\\|canonical | One of two. |\n"));
  EXPECT_THAT(text, HasSubstr("| `--flag` | `false` | true\\|false | A flag. |\n"));
}

}  // namespace
}  // namespace oscarkv
