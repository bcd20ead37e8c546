// JSON from untrusted files: parsed without exceptions, bounded in size and depth, duplicate keys
// refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  size_t max_depth = 32;  // of objects and arrays
  // Of each object. ParseBoundedOrderedJson needs time in the square of it.
  size_t max_members = size_t{1} << 24;
};

// `what` names the text in errors ("config.json"). kInvalidArgument: not JSON (with the byte), too
// large, too deep, or an object with two equal keys (whose value would depend on the reader).
absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, absl::string_view what,
                                                const JsonLimits& limits = {});

// The same with each object's members in the text's order. limits.max_members at most 4096.
absl::StatusOr<nlohmann::ordered_json> ParseBoundedOrderedJson(absl::string_view text,
                                                               absl::string_view what,
                                                               const JsonLimits& limits);

// The whole of a file; kNotFound, or kInvalidArgument above max_bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

// The member `key` of `object`, or null when it is absent or JSON null.
const nlohmann::json* FindMember(const nlohmann::json& object, absl::string_view key);

// The value as an integer; false when it is anything else (a float, a number beyond int64) or
// outside [min, max].
bool JsonInteger(const nlohmann::json& value, int64_t min, int64_t max, int64_t* out);
bool JsonInteger(const nlohmann::ordered_json& value, int64_t min, int64_t max, int64_t* out);

// A short printable form for error messages.
std::string JsonExcerpt(const nlohmann::json& value);
std::string JsonExcerpt(const nlohmann::ordered_json& value);

}  // namespace oscarkv
