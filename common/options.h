// One table row per option (name, field, default, doc, bounds) gives the command-line flags,
// --help, the config file, docs/options.md and the check of the manifests. A room declares a plain
// Options struct and a function that adds its rows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"

namespace oscarkv {

struct OptionRow {
  std::string name;  // "capacity": --capacity on the command line, `capacity = ` in a config file
  std::string value_name;     // "BYTES", "HOST:PORT", ...
  std::string doc;            // one sentence
  std::string default_value;  // as text
  std::string allowed;        // "1..65535", "exact|canonical", "a size such as 512MiB"
  bool is_flag = false;       // takes no value on the command line
  std::function<absl::Status(absl::string_view)>
      set;                  // kInvalidArgument: name, value, what is allowed
  bool repeatable = false;  // may be given several times; each value is added
  bool positional = false;  // may also be given without its name
};

// Rows point into the options struct, which must outlive the table. The default is the field's
// value when the row is added.
class OptionTable {
 public:
  void AddString(std::string name, std::string* field, std::string value_name, std::string doc);
  // On the command line also without its name: `trace ID`.
  void AddPositional(std::string name, std::string* field, std::string value_name, std::string doc);
  void AddStrings(std::string name, std::vector<std::string>* field, std::string value_name,
                  std::string doc);  // commas
  // Each occurrence adds its value as it is, commas and blanks included.
  void AddRepeated(std::string name, std::vector<std::string>* field, std::string value_name,
                   std::string doc);
  void AddInt(const std::string& name, int* field, int64_t min, int64_t max, std::string doc);
  void AddInt64(const std::string& name, int64_t* field, int64_t min, int64_t max, std::string doc);
  void AddUint64(const std::string& name, uint64_t* field, uint64_t min, uint64_t max,
                 std::string doc);
  void AddFloat(const std::string& name, float* field, double min, double max, std::string doc);
  void AddBytes(const std::string& name, uint64_t* field, uint64_t min, uint64_t max,
                std::string doc);  // 4096, 64KiB, 2GiB, 1GB
  void AddDuration(const std::string& name, Duration* field, Duration min, Duration max,
                   std::string doc);  // 250ms, 5s, 2m, 1h
  void AddBool(const std::string& name, bool* field, std::string doc);
  void AddChoice(const std::string& name, std::string* field,
                 const std::vector<std::string>& choices, std::string doc);

  const std::vector<OptionRow>& rows() const { return rows_; }
  absl::Status Set(absl::string_view name, absl::string_view value) const;

 private:
  void Add(OptionRow row) { rows_.push_back(std::move(row)); }
  template <typename T>
  void AddNumber(const std::string& name, T* field, T min, T max, std::string value_name,
                 std::string doc);
  std::vector<OptionRow> rows_;
};

absl::Status ParseBytes(absl::string_view text, uint64_t* bytes);
absl::Status ParseDuration(absl::string_view text, Duration* duration);
std::string FormatBytes(uint64_t bytes);  // "1.50 GiB", "512 B"
std::string FormatDuration(Duration d);   // "250ms", "2.5s"

// Rows as a Markdown table, for docs/options.md.
std::string OptionsMarkdown(const OptionTable& table);

}  // namespace oscarkv
