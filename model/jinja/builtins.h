// Filters, tests, functions and methods of the subset, as Jinja and Python define them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/value.h"

namespace oscarkv::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

bool IsFilter(absl::string_view name);
bool IsTest(absl::string_view name);
// The tests that may be written without brackets around their argument: "is equalto 3".
bool TestTakesArgument(absl::string_view name);
bool IsFunction(absl::string_view name);
bool IsMethod(absl::string_view name);

// kInvalidArgument: what Python would raise an exception for, or a number of arguments.
absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& value,
                                  const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& value,
                               const std::vector<Value>& arguments);
absl::StatusOr<Value> CallFunction(absl::string_view name, const Arguments& arguments);
absl::StatusOr<Value> CallMethod(const Value& object, absl::string_view name,
                                 const Arguments& arguments);

// What a loop goes over: a list's entries, a dict's keys, a text's characters.
absl::StatusOr<List> Iterate(const Value& value);

}  // namespace oscarkv::jinja
