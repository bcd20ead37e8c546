#include "common/options.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

absl::Status Bad(absl::string_view name, absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("--", name, "=", value, ": expected ", allowed));
}

struct Unit {
  const char* suffix;
  double factor;
};
constexpr Unit kByteUnits[] = {
    {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
    {"KB", 1e3},     {"MB", 1e6},        {"GB", 1e9},           {"TB", 1e12},
    {"K", 1024.0},   {"M", 1048576.0},   {"G", 1073741824.0},   {"B", 1.0}};
constexpr Unit kTimeUnits[] = {{"ns", 1.0}, {"us", 1e3}, {"ms", 1e6},
                               {"s", 1e9},  {"m", 60e9}, {"h", 3600e9}};

// "<number><suffix>" with one of `units`; without a suffix the factor is `plain` (0: a suffix is
// needed).
template <size_t N>
bool ParseWithUnit(absl::string_view text, const Unit (&units)[N], double plain, double* out) {
  text = absl::StripAsciiWhitespace(text);
  double factor = plain;
  for (const Unit& u : units) {
    if (text.size() > std::char_traits<char>::length(u.suffix) && absl::EndsWith(text, u.suffix)) {
      text.remove_suffix(std::char_traits<char>::length(u.suffix));
      text = absl::StripTrailingAsciiWhitespace(text);  // "2.00 GiB", as FormatBytes writes it
      factor = u.factor;
      break;
    }
  }
  double number;
  if (factor == 0 || text.empty() || !absl::ascii_isdigit(text.back()) ||
      !absl::ascii_isdigit(text.front()) || !absl::SimpleAtod(text, &number) ||
      !std::isfinite(number)) {
    return false;
  }
  *out = number * factor;
  return true;
}

}  // namespace

absl::Status ParseBytes(absl::string_view text, uint64_t* bytes) {
  double v;
  if (!ParseWithUnit(text, kByteUnits, 1.0, &v) || v > 9e18) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a size such as 4096, 64KiB, 2GiB or 1.5GB"));
  }
  *bytes = static_cast<uint64_t>(std::llround(v));
  return absl::OkStatus();
}

absl::Status ParseDuration(absl::string_view text, Duration* duration) {
  double v;
  if (!ParseWithUnit(text, kTimeUnits, 0.0, &v) || v > 9e18) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a duration such as 250ms, 5s, 2m or 1h"));
  }
  *duration = Duration(std::llround(v));
  return absl::OkStatus();
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  static constexpr const char* kNames[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  double v = static_cast<double>(bytes) / 1024;
  int i = 0;
  for (; v >= 1024 && i < 4; ++i) v /= 1024;
  return absl::StrFormat("%.2f %s", v, kNames[i]);
}

std::string FormatDuration(Duration d) {
  const int64_t ns = d.count();
  for (auto [suffix, factor] : {std::pair<const char*, int64_t>{"h", 3600'000'000'000},
                                {"m", 60'000'000'000},
                                {"s", 1'000'000'000},
                                {"ms", 1'000'000},
                                {"us", 1'000}}) {
    if (ns >= factor && ns % factor == 0) return absl::StrCat(ns / factor, suffix);
  }
  if (ns >= 1'000'000'000) return absl::StrFormat("%.3gs", static_cast<double>(ns) * 1e-9);
  return absl::StrCat(ns, "ns");
}

void OptionTable::AddString(std::string name, std::string* field, std::string value_name,
                            std::string doc) {
  Add({std::move(name), std::move(value_name), std::move(doc), *field, "text", false,
       [field](absl::string_view v) {
         *field = std::string(v);
         return absl::OkStatus();
       }});
}

void OptionTable::AddPositional(std::string name, std::string* field, std::string value_name,
                                std::string doc) {
  AddString(std::move(name), field, std::move(value_name), std::move(doc));
  rows_.back().positional = true;
}

void OptionTable::AddStrings(std::string name, std::vector<std::string>* field,
                             std::string value_name, std::string doc) {
  Add({std::move(name), std::move(value_name), std::move(doc), absl::StrJoin(*field, ","),
       "a comma-separated list", false, [field](absl::string_view v) {
         field->clear();
         for (absl::string_view part : absl::StrSplit(v, ',', absl::SkipWhitespace())) {
           field->emplace_back(absl::StripAsciiWhitespace(part));
         }
         return absl::OkStatus();
       }});
}

void OptionTable::AddRepeated(std::string name, std::vector<std::string>* field,
                              std::string value_name, std::string doc) {
  OptionRow row{std::move(name),
                std::move(value_name),
                std::move(doc),
                "",
                "text",
                false,
                [field](absl::string_view v) {
                  field->emplace_back(std::string(v));
                  return absl::OkStatus();
                }};
  row.repeatable = true;
  Add(std::move(row));
}

template <typename T>
void OptionTable::AddNumber(const std::string& name, T* field, T min, T max, std::string value_name,
                            std::string doc) {
  const std::string allowed = absl::StrCat(min, "..", max);
  Add({name, std::move(value_name), std::move(doc), absl::StrCat(*field), allowed, false,
       [=](absl::string_view v) {
         T number;
         bool ok;
         if constexpr (std::is_floating_point_v<T>) {
           ok = absl::SimpleAtof(v, &number) && std::isfinite(number);
         } else {
           ok = absl::SimpleAtoi(v, &number);
         }
         if (!ok || number < min || number > max)
           return Bad(name, v, absl::StrCat("a number in ", allowed));
         *field = number;
         return absl::OkStatus();
       }});
}

void OptionTable::AddInt(const std::string& name, int* field, int64_t min, int64_t max,
                         std::string doc) {
  AddNumber<int>(name, field, static_cast<int>(min), static_cast<int>(max), "N", std::move(doc));
}
void OptionTable::AddInt64(const std::string& name, int64_t* field, int64_t min, int64_t max,
                           std::string doc) {
  AddNumber<int64_t>(name, field, min, max, "N", std::move(doc));
}
void OptionTable::AddUint64(const std::string& name, uint64_t* field, uint64_t min, uint64_t max,
                            std::string doc) {
  AddNumber<uint64_t>(name, field, min, max, "N", std::move(doc));
}
void OptionTable::AddFloat(const std::string& name, float* field, double min, double max,
                           std::string doc) {
  AddNumber<float>(name, field, static_cast<float>(min), static_cast<float>(max), "X",
                   std::move(doc));
}

void OptionTable::AddBytes(const std::string& name, uint64_t* field, uint64_t min, uint64_t max,
                           std::string doc) {
  const std::string allowed = absl::StrCat("a size in ", FormatBytes(min), "..", FormatBytes(max));
  Add({name, "BYTES", std::move(doc), FormatBytes(*field), allowed, false,
       [=](absl::string_view v) {
         uint64_t bytes;
         if (!ParseBytes(v, &bytes).ok() || bytes < min || bytes > max) {
           return Bad(name, v, absl::StrCat(allowed, ", such as 512MiB"));
         }
         *field = bytes;
         return absl::OkStatus();
       }});
}

void OptionTable::AddDuration(const std::string& name, Duration* field, Duration min, Duration max,
                              std::string doc) {
  const std::string allowed =
      absl::StrCat("a duration in ", FormatDuration(min), "..", FormatDuration(max));
  Add({name, "TIME", std::move(doc), FormatDuration(*field), allowed, false,
       [=](absl::string_view v) {
         Duration d;
         if (!ParseDuration(v, &d).ok() || d < min || d > max)
           return Bad(name, v, absl::StrCat(allowed, ", such as 5s"));
         *field = d;
         return absl::OkStatus();
       }});
}

void OptionTable::AddBool(const std::string& name, bool* field, std::string doc) {
  Add({name, "", std::move(doc), *field ? "true" : "false", "true|false", true,
       [=](absl::string_view v) {
         if (v != "true" && v != "false") return Bad(name, v, "true or false");
         *field = v == "true";
         return absl::OkStatus();
       }});
}

void OptionTable::AddChoice(const std::string& name, std::string* field,
                            const std::vector<std::string>& choices, std::string doc) {
  const std::string allowed = absl::StrJoin(choices, "|");
  Add({name, allowed, std::move(doc), *field, allowed, false, [=](absl::string_view v) {
         if (std::find(choices.begin(), choices.end(), v) == choices.end())
           return Bad(name, v, allowed);
         *field = std::string(v);
         return absl::OkStatus();
       }});
}

absl::Status OptionTable::Set(absl::string_view name, absl::string_view value) const {
  for (const OptionRow& row : rows_) {
    if (row.name == name) return row.set(value);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown option '", name, "'"));
}

std::string OptionsMarkdown(const OptionTable& table) {
  std::string out = "| option | default | allowed | meaning |\n|---|---|---|---|\n";
  for (const OptionRow& row : table.rows()) {
    const auto escape = [](const std::string& s) { return absl::StrReplaceAll(s, {{"|", "\\|"}}); };
    absl::StrAppend(&out, "| `--", row.name, "` | ",
                    row.default_value.empty() ? "" : absl::StrCat("`", row.default_value, "`"),
                    " | ", escape(row.allowed), " | ", escape(row.doc), " |\n");
  }
  return out;
}

}  // namespace oscarkv
