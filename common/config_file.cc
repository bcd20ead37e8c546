#include "common/config_file.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

absl::Status SetLine(const OptionTable& table, absl::string_view line,
                     const std::function<bool(const std::string&)>& given,
                     std::set<std::string>* seen) {
  const size_t equals = line.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError("expected `name = value`, or # and a comment");
  }
  const std::string name(absl::StripTrailingAsciiWhitespace(line.substr(0, equals)));
  absl::string_view value = absl::StripLeadingAsciiWhitespace(line.substr(equals + 1));
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
    value = value.substr(1, value.size() - 2);
  }
  const auto row = std::find_if(table.rows().begin(), table.rows().end(),
                                [&name](const OptionRow& r) { return r.name == name; });
  if (row == table.rows().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown option '", name, "': --help lists those of this command"));
  }
  if (!seen->insert(name).second && !row->repeatable) {
    return absl::InvalidArgumentError(absl::StrCat("option '", name, "' came before"));
  }
  return given(name) ? absl::OkStatus() : row->set(value);
}

}  // namespace

absl::Status ApplyConfig(const OptionTable& table, absl::string_view source, absl::string_view text,
                         const std::function<bool(const std::string& name)>& given) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", text.size(),
                                                   " bytes: expected a config file of at most ",
                                                   kMaxConfigBytes, " bytes"));
  }
  std::set<std::string> seen;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const absl::string_view line = absl::StripAsciiWhitespace(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == '#') continue;
    const bool control = std::any_of(line.begin(), line.end(), [](char c) {
      return c != '\t' && absl::ascii_iscntrl(static_cast<unsigned char>(c));
    });
    const absl::Status status = control ? absl::InvalidArgumentError("a control character")
                                        : SetLine(table, line, given, &seen);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ", line ", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

std::string ConfigTemplate(const OptionTable& table) {
  std::string out;
  for (const OptionRow& row : table.rows()) {
    absl::StrAppend(&out, "\n# ", row.doc, "\n# Allowed: ", row.allowed, "\n#", row.name, " = ",
                    row.default_value, "\n");
  }
  return out;
}

}  // namespace oscarkv
