#include "model/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv::jinja {
namespace {

using Json = nlohmann::ordered_json;

// One code point from the front of valid UTF-8; its bytes.
size_t Step(absl::string_view text) {
  const auto c = static_cast<unsigned char>(text[0]);
  const size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
  return std::min(n, text.size());
}

// ... and from the back.
size_t StepBack(absl::string_view text) {
  size_t n = 1;
  while (n < text.size() && (static_cast<unsigned char>(text[text.size() - n]) & 0xC0) == 0x80) ++n;
  return n;
}

uint32_t CodePoint(absl::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])); };
  switch (bytes.size()) {
    case 1:
      return at(0);
    case 2:
      return (at(0) & 0x1F) << 6 | (at(1) & 0x3F);
    case 3:
      return (at(0) & 0x0F) << 12 | (at(1) & 0x3F) << 6 | (at(2) & 0x3F);
    default:
      return (at(0) & 0x07) << 18 | (at(1) & 0x3F) << 12 | (at(2) & 0x3F) << 6 | (at(3) & 0x3F);
  }
}

// str.isspace of one character.
bool IsSpace(uint32_t c) {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string JsonText(const std::string& text) {
  return Json(text).dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::Status AppendJson(const Value& value, int indent, int level, std::string* out);

// One level of a list or dict: `entry(i)` writes the i-th of n.
template <typename Entry>
absl::Status AppendEntries(char open, char close, size_t n, int indent, int level, std::string* out,
                           Entry entry) {
  out->push_back(open);
  for (size_t i = 0; i < n; ++i) {
    if (i > 0) out->append(indent < 0 ? ", " : ",");
    if (indent >= 0) {
      out->push_back('\n');
      out->append(static_cast<size_t>(indent * (level + 1)), ' ');
    }
    RETURN_IF_ERROR(entry(i));
  }
  if (n > 0 && indent >= 0) {
    out->push_back('\n');
    out->append(static_cast<size_t>(indent * level), ' ');
  }
  out->push_back(close);
  return absl::OkStatus();
}

absl::Status AppendJson(const Value& value, int indent, int level, std::string* out) {
  if (const List* list = value.list()) {
    return AppendEntries('[', ']', list->size(), indent, level, out,
                         [&](size_t i) { return AppendJson((*list)[i], indent, level + 1, out); });
  }
  if (const Dict* dict = value.dict()) {
    return AppendEntries('{', '}', dict->size(), indent, level, out, [&](size_t i) {
      absl::StrAppend(out, JsonText((*dict)[i].first), ": ");
      return AppendJson((*dict)[i].second, indent, level + 1, out);
    });
  }
  if (const std::string* text = value.text()) {
    out->append(JsonText(*text));
  } else if (value.none()) {
    out->append("null");
  } else if (const bool* b = value.boolean()) {
    out->append(*b ? "true" : "false");
  } else if (const int64_t* i = value.integer()) {
    absl::StrAppend(out, *i);
  } else if (const double* d = value.real()) {
    out->append(std::isfinite(*d) ? PythonFloat(*d)
                : std::isnan(*d)  ? "NaN"
                : *d < 0          ? "-Infinity"
                                  : "Infinity");
  } else {
    return absl::InvalidArgumentError(absl::StrCat(value.TypeName(), " has no JSON"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Value> Value::FromJson(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return Bool(json.get<bool>());
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError(
            absl::StrCat("integer ", json.get<uint64_t>(), ": allowed are those of 64 bits"));
      }
      return Int(json.get<int64_t>());
    case Json::value_t::number_integer:
      return Int(json.get<int64_t>());
    case Json::value_t::number_float:
      return Float(json.get<double>());
    case Json::value_t::string:
      return Text(json.get<std::string>());
    case Json::value_t::array: {
      List list;
      for (const Json& entry : json) {
        ASSIGN_OR_RETURN(Value value, FromJson(entry));
        list.push_back(std::move(value));
      }
      return MakeList(std::move(list));
    }
    case Json::value_t::object: {
      Dict dict;
      for (const auto& [key, entry] : json.items()) {
        ASSIGN_OR_RETURN(Value value, FromJson(entry));
        dict.emplace_back(key, std::move(value));
      }
      return MakeDict(std::move(dict));
    }
    default:
      return MakeNone();
  }
}

bool Value::AsInteger(int64_t* out) const {
  if (const bool* b = boolean()) {
    *out = *b;
  } else if (const int64_t* i = integer()) {
    *out = *i;
  } else {
    return false;
  }
  return true;
}

bool Value::AsNumber(double* out) const {
  int64_t i = 0;
  if (const double* d = real()) {
    *out = *d;
  } else if (AsInteger(&i)) {
    *out = static_cast<double>(i);
  } else {
    return false;
  }
  return true;
}

bool Value::Truth() const {
  double number = 0;
  if (AsNumber(&number)) return number != 0;
  if (const std::string* t = text()) return !t->empty();
  if (const List* l = list()) return !l->empty();
  if (const Dict* d = dict()) return !d->empty();
  return space() != nullptr;
}

bool Value::operator==(const Value& other) const {
  int64_t i = 0, j = 0;
  if (AsInteger(&i) && other.AsInteger(&j)) return i == j;
  double a = 0, b = 0;
  if (AsNumber(&a) && other.AsNumber(&b)) return a == b;
  if (data_.index() != other.data_.index()) return false;
  if (text() != nullptr) return *text() == *other.text();
  if (list() != nullptr) return list() == other.list() || *list() == *other.list();
  if (dict() != nullptr) {
    if (dict() == other.dict()) return true;
    if (dict()->size() != other.dict()->size()) return false;
    return std::all_of(dict()->begin(), dict()->end(), [&](const auto& member) {
      const Value value = other.Member(member.first);
      return !value.undefined() && member.second == value;
    });
  }
  return space() == other.space();  // undefined and none equal themselves
}

const char* Value::TypeName() const {
  static constexpr const char* kNames[] = {
      "an undefined value", "none",   "a boolean", "an integer",
      "a number",           "a text", "a list",    "a dict",
      "a namespace"};
  return kNames[data_.index()];
}

Value Value::Member(absl::string_view key) const {
  const Dict* members = space() != nullptr ? space() : dict();
  if (members == nullptr) return Value();
  for (const auto& [name, value] : *members) {
    if (name == key) return value;
  }
  return Value();
}

std::string PythonFloat(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  char buffer[64];
  const double size = std::fabs(v);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), v,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed)
          .ptr;
  std::string text(buffer, end);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

absl::StatusOr<std::string> ToText(const Value& value) {
  if (const std::string* text = value.text()) return *text;
  if (value.undefined()) return std::string();
  if (value.none()) return std::string("None");
  if (const bool* b = value.boolean()) return std::string(*b ? "True" : "False");
  if (const int64_t* i = value.integer()) return absl::StrCat(*i);
  if (const double* d = value.real()) return PythonFloat(*d);
  return absl::InvalidArgumentError(absl::StrCat(value.TypeName(),
                                                 " cannot be printed: expected a "
                                                 "text or a number"));
}

absl::StatusOr<std::string> ToJson(const Value& value, int indent) {
  std::string out;
  RETURN_IF_ERROR(AppendJson(value, indent, 0, &out));
  return out;
}

size_t Length(absl::string_view utf8) {
  return static_cast<size_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string Substring(absl::string_view utf8, size_t begin, size_t end) {
  size_t at = 0;
  for (size_t i = 0; i < begin; ++i) at += Step(utf8.substr(at));
  size_t stop = at;
  for (size_t i = begin; i < end; ++i) stop += Step(utf8.substr(stop));
  return std::string(utf8.substr(at, stop - at));
}

std::string Strip(absl::string_view text, const std::string* characters, bool left, bool right) {
  const auto strips = [&](absl::string_view c) {
    if (characters == nullptr) return IsSpace(CodePoint(c));
    for (absl::string_view rest = *characters; !rest.empty(); rest.remove_prefix(Step(rest))) {
      if (rest.substr(0, Step(rest)) == c) return true;
    }
    return false;
  };
  while (left && !text.empty() && strips(text.substr(0, Step(text))))
    text.remove_prefix(Step(text));
  while (right && !text.empty() && strips(text.substr(text.size() - StepBack(text)))) {
    text.remove_suffix(StepBack(text));
  }
  return std::string(text);
}

}  // namespace oscarkv::jinja
