// Config files: one `name = value` a line, the names those of an option table.
//
//   # a comment, on a line of its own
//   capacity = 64GiB
//   nodes = "kv-0:7401,kv-1:7401"     the quotes may be left out
//
// Stateless; no I/O here.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/options.h"

namespace oscarkv {

// Largest file that is accepted.
inline constexpr size_t kMaxConfigBytes = 1 << 20;

// Sets the table's options from `text`, but none for which `given(name)` says that the command line
// has set it already. `source` names the file in errors.
// kInvalidArgument, with source and line: no `name = value`, an unknown name, a name that came
// before (unless the option may be repeated), a value that the table refuses, a control character.
// Options of lines before the wrong one are set then; callers give up.
absl::Status ApplyConfig(const OptionTable& table, absl::string_view source, absl::string_view text,
                         const std::function<bool(const std::string& name)>& given);

// A file that lists every option of the table with its meaning, its default as a comment. Parsed by
// ApplyConfig it changes nothing.
std::string ConfigTemplate(const OptionTable& table);

}  // namespace oscarkv
