#include "cli/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace oscarkv::cli {

bool StderrIsTerminal() {
  static const bool is = isatty(STDERR_FILENO) == 1;
  return is;
}
bool StdoutIsTerminal() {
  static const bool is = isatty(STDOUT_FILENO) == 1;
  return is;
}

void PrintError(const absl::Status& status) {
  const char* on = StderrIsTerminal() ? "\033[31m" : "";
  const char* off = StderrIsTerminal() ? "\033[0m" : "";
  std::fprintf(stderr, "%soscarkv: %s: %s%s\n", on, absl::StatusCodeToString(status.code()).c_str(),
               std::string(status.message()).c_str(), off);
}

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fprintf(stderr, "\r\033[K");
}

void ProgressBar::Update(double share) {
  if (!StderrIsTerminal()) return;
  const Time now = SteadyClock::Get()->Now();
  if (drawn_ && now - last_draw_ < std::chrono::milliseconds(50) && share < 1) return;
  if (!drawn_) {
    start_ = now;
    start_share_ = share;
  }
  last_draw_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const int full = static_cast<int>(std::clamp(share, 0.0, 1.0) * kWidth);
  std::string left;  // of what takes long, after enough of it to tell
  if (now - start_ > std::chrono::seconds(3) && share - start_share_ > 0.02 && share < 1) {
    const double seconds = std::chrono::duration<double>(now - start_).count();
    left = absl::StrFormat(", %.0f s left", seconds * (1 - share) / (share - start_share_));
  }
  std::fprintf(stderr, "\r%s [%s%s] %3.0f %%%s\033[K", label_.c_str(),
               std::string(full, '#').c_str(), std::string(kWidth - full, '.').c_str(), share * 100,
               left.c_str());
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, row[i], std::string(widths[i] - row[i].size() + 2, ' '));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

std::string FormatMicros(uint64_t us) {
  if (us >= 1'000'000) return absl::StrFormat("%.2f s", static_cast<double>(us) * 1e-6);
  if (us >= 1'000) return absl::StrFormat("%.1f ms", static_cast<double>(us) * 1e-3);
  return absl::StrCat(us, " us");
}

}  // namespace oscarkv::cli
