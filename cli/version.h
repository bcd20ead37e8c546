// What this binary is.
#pragma once

#include <string>

namespace oscarkv::cli {

// Several lines: version, commit, compiler, UCX, kernel targets.
std::string VersionText();

}  // namespace oscarkv::cli
