// What a person sees: progress bars and tables when stderr/stdout is a terminal, plain lines when
// not.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"

namespace oscarkv::cli {

bool StderrIsTerminal();
bool StdoutIsTerminal();

// "oscarkv: <message>" on stderr, red on a terminal.
void PrintError(const absl::Status& status);

// Draws on stderr when it is a terminal, else prints nothing. One thread.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  void Update(double share);  // 0..1

 private:
  const std::string label_;
  Time start_{}, last_draw_{};
  double start_share_ = 0;  // what was there before: a run that was gone on with
  bool drawn_ = false;
};

// Columns aligned to their widest cell; the first row is the header.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

// "1.23 s", "45.6 ms", "7 us"
std::string FormatMicros(uint64_t us);

}  // namespace oscarkv::cli
