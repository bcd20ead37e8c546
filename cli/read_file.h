// Reads a whole text, "-" being standard input.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace oscarkv::cli {

// kNotFound / kInvalidArgument name the file and the reason; at most 64 MiB.
absl::StatusOr<std::string> ReadFileOrStdin(const std::string& path);

}  // namespace oscarkv::cli
