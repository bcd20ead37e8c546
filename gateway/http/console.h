// The console's files, embedded at build time from gateway/console.
#pragma once

#include "absl/strings/string_view.h"

namespace oscarkv::gateway {

struct ConsoleFile {
  const char* path;  // of the URL
  const char* content_type;
  absl::string_view content;
};

// Null when there is no such file.
const ConsoleFile* FindConsoleFile(absl::string_view path);

}  // namespace oscarkv::gateway
