#include "common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "common/trace.h"

namespace oscarkv {
namespace {

// Colours only on a terminal; the sink decides.
spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto l = spdlog::stderr_color_mt("oscarkv");
    l->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%L%$ %n %v");
    l->set_level(spdlog::level::info);
    l->flush_on(spdlog::level::info);
    return l;
  }();
  return *logger;
}

bool NeedsQuotes(const std::string& v) {
  return v.empty() || v.find_first_of(" \"=\n\t\r") != std::string::npos;
}

// Keeps a line a line, whatever a peer or a prompt put into a value.
void AppendValue(std::string* line, const std::string& v) {
  if (!NeedsQuotes(v)) {
    line->append(v);
    return;
  }
  line->push_back('"');
  for (char c : v) {
    if (c == '"' || c == '\\') line->push_back('\\');
    if (c == '\n') {
      line->append("\\n");
    } else if (static_cast<unsigned char>(c) < 0x20) {
      line->push_back(' ');
    } else {
      line->push_back(c);
    }
  }
  line->push_back('"');
}

}  // namespace

void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  const auto l = kLevels[static_cast<int>(level)];
  if (!Logger().should_log(l)) return;
  std::string line(message);
  bool traced = CurrentTrace().empty();
  for (const auto& [key, value] : fields) {
    absl::StrAppend(&line, " ", key, "=");
    AppendValue(&line, value);
    traced |= key == "trace";
  }
  if (!traced) absl::StrAppend(&line, " trace=", CurrentTrace());
  Logger().log(l, "{}", line);
}

absl::Status InitLog(absl::string_view level, absl::string_view role) {
  const std::string name(level);
  const auto l = spdlog::level::from_str(name);
  if (l == spdlog::level::off && name != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-level=", name, ": expected debug, info, warn, error or off"));
  }
  Logger().set_level(l);
  Logger().set_pattern(absl::StrCat("%Y-%m-%dT%H:%M:%S.%e%z %^%L%$ ", role, "[%P] %v"));
  return absl::OkStatus();
}

}  // namespace oscarkv
