// Structured logs on stderr: one line per event, a message and key=value fields. The only place
// that knows spdlog is log.cc.
//
//   Log(LogLevel::kInfo, "request done", {{"request", id}, {"tokens", absl::StrCat(n)}});
// Within a TraceScope (common/trace.h) a line ends with trace=ID, unless it has such a field.
// Thread-safe. Not for hot paths.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

using LogField = std::pair<absl::string_view, std::string>;

void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields = {});
inline void LogInfo(absl::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kInfo, m, f);
}
inline void LogWarn(absl::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kWarn, m, f);
}
inline void LogError(absl::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kError, m, f);
}

// level: debug, info, warn, error, off; role: shown on every line ("kvstore", "gateway").
absl::Status InitLog(absl::string_view level, absl::string_view role);

}  // namespace oscarkv
