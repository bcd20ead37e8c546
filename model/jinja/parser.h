// From tokens to a tree. What is outside of the subset is refused here, before anything is
// rendered: tags, filters, tests, functions and methods that do not exist.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/ast.h"

namespace oscarkv::jinja {

// kInvalidArgument: not a template; kUnimplemented: outside of the subset. Both name the line.
absl::StatusOr<std::vector<Node>> Parse(absl::string_view source);

}  // namespace oscarkv::jinja
