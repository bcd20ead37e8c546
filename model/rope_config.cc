#include "model/rope_config.h"

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"

namespace oscarkv {
namespace {

using nlohmann::json;

// Parameters that some rope type reads. Anything else in the object may change the angles and is
// refused.
constexpr absl::string_view kKnownParameters[] = {
    "type",
    "rope_type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
};

// A finite number in (0, max], or nullopt when the key is absent.
absl::StatusOr<std::optional<double>> Positive(const json& object, absl::string_view key,
                                               double max) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return std::optional<double>();
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number > 0 && number <= max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: ", key, " is ", JsonExcerpt(*value),
                     ", expected a number above 0 and at most ", max));
  }
  return std::optional<double>(number);
}

// The value of `key` at the top level and in the rope object: either one, or both if they agree.
absl::StatusOr<double> OneOf(const json& config, const json& rope, absl::string_view key,
                             double max, double if_absent) {
  ASSIGN_OR_RETURN(const std::optional<double> outer, Positive(config, key, max));
  ASSIGN_OR_RETURN(const std::optional<double> inner, Positive(rope, key, max));
  if (outer && inner && *outer != *inner) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " is ", *outer,
                                                   " at the top level and ", *inner,
                                                   " in the rope parameters"));
  }
  return inner.value_or(outer.value_or(if_absent));
}

absl::StatusOr<double> Required(const json& rope, absl::string_view key, double max,
                                absl::string_view type) {
  ASSIGN_OR_RETURN(const std::optional<double> value, Positive(rope, key, max));
  if (!value) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: rope type ", type, " needs ", key));
  }
  return *value;
}

// rope_scaling or rope_parameters, an empty object where neither is given.
absl::StatusOr<json> RopeObject(const json& config) {
  const json* old_style = FindMember(config, "rope_scaling");
  const json* new_style = FindMember(config, "rope_parameters");
  if (old_style != nullptr && new_style != nullptr && *old_style != *new_style) {
    return absl::InvalidArgumentError(
        "config.json: rope_scaling and rope_parameters contradict each other");
  }
  const json* found = new_style != nullptr ? new_style : old_style;
  if (found == nullptr) return json::object();
  const absl::string_view name = found == new_style ? "rope_parameters" : "rope_scaling";
  if (!found->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", name, " is ", JsonExcerpt(*found), ", expected an object or null"));
  }
  for (const auto& [key, value] : found->items()) {
    bool known = value.is_null();
    for (const absl::string_view k : kKnownParameters) known = known || key == k;
    if (!known) {
      return absl::UnimplementedError(
          absl::StrCat("config.json: ", name, ".", key, " = ", JsonExcerpt(value)));
    }
  }
  return *found;
}

absl::StatusOr<RopeConfig::Type> RopeType(const json& rope) {
  const json* type = FindMember(rope, "rope_type");
  const json* old_type = FindMember(rope, "type");
  if (type != nullptr && old_type != nullptr && *type != *old_type) {
    return absl::InvalidArgumentError("config.json: rope type and rope_type contradict each other");
  }
  if (type == nullptr) type = old_type;
  if (type == nullptr || *type == "default") {
    // Scaling without a type would be silently ignored.
    if (type == nullptr && FindMember(rope, "factor") != nullptr) {
      return absl::InvalidArgumentError("config.json: a rope factor without a rope type");
    }
    return RopeConfig::Type::kDefault;
  }
  if (*type == "linear") return RopeConfig::Type::kLinear;
  if (*type == "llama3") return RopeConfig::Type::kLlama3;
  return absl::UnimplementedError(absl::StrCat("config.json: rope type ", JsonExcerpt(*type),
                                               "; supported: default, linear, llama3"));
}

}  // namespace

absl::StatusOr<RopeConfig> ParseRopeConfig(const json& config, int head_dim) {
  ASSIGN_OR_RETURN(const json rope, RopeObject(config));
  RopeConfig out;
  ASSIGN_OR_RETURN(out.type, RopeType(rope));
  ASSIGN_OR_RETURN(out.theta, OneOf(config, rope, "rope_theta", 1e12, 10000.0));
  ASSIGN_OR_RETURN(out.partial_rotary_factor,
                   OneOf(config, rope, "partial_rotary_factor", 1.0, 1.0));
  // Pairs of channels rotate: the rotated part must be a positive even number of channels.
  const int rotated = static_cast<int>(head_dim * out.partial_rotary_factor);
  if (rotated < 2 || rotated % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: partial_rotary_factor ", out.partial_rotary_factor, " of head_dim ", head_dim,
        " rotates ", rotated, " channels, expected a positive even number"));
  }
  if (out.type == RopeConfig::Type::kDefault) return out;

  const absl::string_view type = out.type == RopeConfig::Type::kLinear ? "linear" : "llama3";
  ASSIGN_OR_RETURN(out.factor, Required(rope, "factor", 1e6, type));
  if (out.factor < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: rope factor ", out.factor, ", expected at least 1"));
  }
  if (out.type == RopeConfig::Type::kLinear) return out;

  ASSIGN_OR_RETURN(out.low_freq_factor, Required(rope, "low_freq_factor", 1e6, type));
  ASSIGN_OR_RETURN(out.high_freq_factor, Required(rope, "high_freq_factor", 1e6, type));
  if (out.high_freq_factor <= out.low_freq_factor) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: rope high_freq_factor ", out.high_freq_factor,
                     " must be above low_freq_factor ", out.low_freq_factor));
  }
  const json* original = FindMember(rope, "original_max_position_embeddings");
  int64_t positions = 0;
  if (original == nullptr || !JsonInteger(*original, 1, int64_t{1} << 30, &positions)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: rope type llama3 needs original_max_position_embeddings, a positive integer",
        original == nullptr ? "" : absl::StrCat("; it is ", JsonExcerpt(*original))));
  }
  out.original_max_position_embeddings = static_cast<int>(positions);
  return out;
}

}  // namespace oscarkv
