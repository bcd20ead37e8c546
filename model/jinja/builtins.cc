#include "model/jinja/builtins.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"

namespace oscarkv::jinja {
namespace {

constexpr absl::string_view kFilters[] = {
    "trim",    "length", "count", "tojson",     "string",     "first", "last",    "join", "list",
    "default", "d",      "items", "selectattr", "rejectattr", "map",   "replace", "safe", "int"};
constexpr absl::string_view kTests[] = {"defined",  "undefined", "none",   "string",  "mapping",
                                        "iterable", "sequence",  "number", "integer", "float",
                                        "boolean",  "true",      "false",  "equalto", "eq",
                                        "==",       "ne",        "in",     "odd",     "even"};
constexpr absl::string_view kFunctions[] = {"namespace", "range", "raise_exception", "dict"};
constexpr absl::string_view kMethods[] = {"strip",      "lstrip",   "rstrip",  "split",
                                          "startswith", "endswith", "replace", "items",
                                          "keys",       "values",   "get",     "join"};
constexpr int64_t kMaxRange = 100'000;

template <size_t N>
bool Has(const absl::string_view (&names)[N], absl::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

// The argument at `index` or of that name; null when it is not given.
const Value* Argument(const Arguments& arguments, size_t index, absl::string_view name) {
  if (index < arguments.positional.size()) return &arguments.positional[index];
  for (const auto& [key, value] : arguments.named) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::Status CheckArguments(absl::string_view what, const Arguments& a, size_t most,
                            std::initializer_list<absl::string_view> names = {}) {
  if (a.positional.size() > most) {
    return Bad(absl::StrCat(what, " takes up to ", most, " arguments, not ", a.positional.size()));
  }
  for (const auto& [key, value] : a.named) {
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      return Bad(absl::StrCat(what, " takes no argument \"", key, "\""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> TextArgument(absl::string_view what, const Arguments& a, size_t index) {
  const Value* value = Argument(a, index, "");
  if (value == nullptr || value->text() == nullptr) {
    return Bad(absl::StrCat(what, ": argument ", index + 1, " must be a text"));
  }
  return *value->text();
}

Value ItemsOf(const Dict& dict) {
  List items;
  for (const auto& [key, value] : dict) items.push_back(Value::MakeList({Value::Text(key), value}));
  return Value::MakeList(std::move(items));
}

absl::StatusOr<Value> Length(const Value& value) {
  size_t n = 0;
  if (value.text() != nullptr) {
    n = jinja::Length(*value.text());
  } else if (value.list() != nullptr) {
    n = value.list()->size();
  } else if (value.dict() != nullptr) {
    n = value.dict()->size();
  } else if (!value.undefined()) {
    return Bad(absl::StrCat(value.TypeName(), " has no length"));
  }
  return Value::Int(static_cast<int64_t>(n));
}

absl::StatusOr<Value> Join(const Value& values, const std::string& between) {
  ASSIGN_OR_RETURN(const List list, Iterate(values));
  std::string out;
  for (size_t i = 0; i < list.size(); ++i) {
    if (i > 0) out += between;
    ASSIGN_OR_RETURN(const std::string text, ToText(list[i]));
    out += text;
  }
  return Value::Text(std::move(out));
}

// selectattr("name", "test", arguments...), rejectattr, map(attribute="name").
absl::StatusOr<Value> ByAttribute(absl::string_view filter, const Value& value,
                                  const Arguments& arguments) {
  const bool map = filter == "map";
  RETURN_IF_ERROR(map ? CheckArguments(filter, arguments, 0, {"attribute"})
                      : CheckArguments(filter, arguments, 8));
  const Value* name = map ? Argument(arguments, 0, "attribute") : Argument(arguments, 0, "");
  if (name == nullptr || name->text() == nullptr) {
    return Bad(absl::StrCat(filter, ": expected the name of an attribute"));
  }
  if (absl::StrContains(*name->text(), '.')) {
    return absl::UnimplementedError(absl::StrCat(filter, " of a dotted attribute"));
  }
  std::string test;
  if (arguments.positional.size() > 1) {
    ASSIGN_OR_RETURN(test, TextArgument(filter, arguments, 1));
    if (!IsTest(test)) return absl::UnimplementedError(absl::StrCat("the test \"", test, "\""));
  }
  const std::vector<Value> rest(
      arguments.positional.begin() +
          static_cast<ptrdiff_t>(std::min<size_t>(2, arguments.positional.size())),
      arguments.positional.end());
  ASSIGN_OR_RETURN(const List list, Iterate(value));
  List out;
  for (const Value& entry : list) {
    const Value attribute = entry.Member(*name->text());
    if (map) {
      out.push_back(attribute);
      continue;
    }
    bool passes = attribute.Truth();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(passes, ApplyTest(test, attribute, rest));
    }
    if (passes == (filter == "selectattr")) out.push_back(entry);
  }
  return Value::MakeList(std::move(out));
}

absl::StatusOr<Value> Replace(const std::string& text, const Arguments& arguments) {
  RETURN_IF_ERROR(CheckArguments("replace", arguments, 2));
  ASSIGN_OR_RETURN(const std::string from, TextArgument("replace", arguments, 0));
  ASSIGN_OR_RETURN(const std::string to, TextArgument("replace", arguments, 1));
  if (from.empty()) return Bad("replace: the text to replace is empty");
  return Value::Text(absl::StrReplaceAll(text, {{from, to}}));
}

absl::StatusOr<Value> ToInteger(const Value& value) {
  int64_t i = 0;
  double d = 0;
  if (value.AsInteger(&i)) return Value::Int(i);
  if (value.AsNumber(&d) && std::fabs(d) < 9e18) return Value::Int(static_cast<int64_t>(d));
  if (value.text() != nullptr && absl::SimpleAtoi(*value.text(), &i)) return Value::Int(i);
  return Value::Int(0);  // Jinja's default
}

absl::StatusOr<Value> ToJsonFilter(const Value& value, const Arguments& arguments) {
  RETURN_IF_ERROR(CheckArguments("tojson", arguments, 0, {"indent", "ensure_ascii"}));
  int64_t indent = -1;
  if (const Value* given = Argument(arguments, 0, "indent"); given != nullptr && !given->none()) {
    if (!given->AsInteger(&indent) || indent < 0 || indent > 16) {
      return Bad("tojson: indent must be within 0..16");
    }
  }
  if (const Value* ascii = Argument(arguments, 1, "ensure_ascii"); ascii && ascii->Truth()) {
    return absl::UnimplementedError("tojson with ensure_ascii");
  }
  ASSIGN_OR_RETURN(std::string json, ToJson(value, static_cast<int>(indent)));
  return Value::Text(std::move(json));
}

absl::StatusOr<Value> TextMethod(const std::string& text, absl::string_view name,
                                 const Arguments& arguments) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 1));
    std::string characters;
    if (!arguments.positional.empty()) {
      ASSIGN_OR_RETURN(characters, TextArgument(name, arguments, 0));
    }
    return Value::Text(Strip(text, arguments.positional.empty() ? nullptr : &characters,
                             name != "rstrip", name != "lstrip"));
  }
  if (name == "startswith" || name == "endswith") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 1));
    ASSIGN_OR_RETURN(const std::string part, TextArgument(name, arguments, 0));
    return Value::Bool(name == "startswith" ? absl::StartsWith(text, part)
                                            : absl::EndsWith(text, part));
  }
  if (name == "replace") return Replace(text, arguments);
  if (name == "join") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 1));
    if (arguments.positional.empty()) return Bad("join: expected a list");
    return Join(arguments.positional[0], text);
  }
  if (name != "split") return Bad(absl::StrCat("a text has no method \"", name, "\""));
  RETURN_IF_ERROR(CheckArguments(name, arguments, 1));
  if (arguments.positional.empty()) {
    return absl::UnimplementedError("split at white space, without a text to split at");
  }
  ASSIGN_OR_RETURN(const std::string between, TextArgument(name, arguments, 0));
  if (between.empty()) return Bad("split: the text to split at is empty");
  List parts;
  size_t at = 0;
  while (true) {
    const size_t end = text.find(between, at);
    parts.push_back(Value::Text(text.substr(at, end - at)));
    if (end == std::string::npos) return Value::MakeList(std::move(parts));
    at = end + between.size();
  }
}

absl::StatusOr<Value> DictMethod(const Value& dict, absl::string_view name,
                                 const Arguments& arguments) {
  if (name == "get") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 2));
    ASSIGN_OR_RETURN(const std::string key, TextArgument(name, arguments, 0));
    Value value = dict.Member(key);
    if (!value.undefined()) return value;
    return arguments.positional.size() > 1 ? arguments.positional[1] : Value::MakeNone();
  }
  RETURN_IF_ERROR(CheckArguments(name, arguments, 0));
  if (name == "items") return ItemsOf(*dict.dict());
  if (name != "keys" && name != "values") {
    return Bad(absl::StrCat("a dict has no method \"", name, "\""));
  }
  List out;
  for (const auto& [key, value] : *dict.dict()) {
    out.push_back(name == "keys" ? Value::Text(key) : value);
  }
  return Value::MakeList(std::move(out));
}

absl::StatusOr<Value> Range(const Arguments& arguments) {
  RETURN_IF_ERROR(CheckArguments("range", arguments, 3));
  int64_t part[3] = {0, 0, 1};
  const size_t n = arguments.positional.size();
  if (n == 0) return Bad("range: expected a number");
  for (size_t i = 0; i < n; ++i) {
    if (!arguments.positional[i].AsInteger(&part[n == 1 ? 1 : i])) {
      return Bad("range: expected integers");
    }
  }
  if (part[2] == 0) return Bad("range: a step of 0");
  List out;
  for (int64_t i = part[0]; part[2] > 0 ? i < part[1] : i > part[1]; i += part[2]) {
    if (static_cast<int64_t>(out.size()) >= kMaxRange) {
      return Bad(absl::StrCat("range: more than ", kMaxRange, " numbers"));
    }
    out.push_back(Value::Int(i));
  }
  return Value::MakeList(std::move(out));
}

}  // namespace

bool IsFilter(absl::string_view name) {
  return Has(kFilters, name);
}
bool IsTest(absl::string_view name) {
  return Has(kTests, name);
}
bool IsFunction(absl::string_view name) {
  return Has(kFunctions, name);
}
bool IsMethod(absl::string_view name) {
  return Has(kMethods, name);
}
bool TestTakesArgument(absl::string_view name) {
  return name == "equalto" || name == "eq" || name == "==" || name == "ne" || name == "in";
}

absl::StatusOr<List> Iterate(const Value& value) {
  if (value.list() != nullptr) return *value.list();
  List out;
  if (value.undefined()) return out;  // Jinja loops over nothing
  if (value.dict() != nullptr) {
    for (const auto& [key, entry] : *value.dict()) out.push_back(Value::Text(key));
    return out;
  }
  if (value.text() == nullptr) {
    return Bad(absl::StrCat("cannot go over ", value.TypeName()));
  }
  for (size_t at = 0; at < value.text()->size();) {
    size_t end = at + 1;
    while (end < value.text()->size() && ((*value.text())[end] & 0xC0) == 0x80) ++end;
    out.push_back(Value::Text(value.text()->substr(at, end - at)));
    at = end;
  }
  return out;
}

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& value,
                                  const Arguments& arguments) {
  if (name == "tojson") return ToJsonFilter(value, arguments);
  if (name == "selectattr" || name == "rejectattr" || name == "map") {
    return ByAttribute(name, value, arguments);
  }
  if (name == "default" || name == "d") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 2, {"default_value", "boolean"}));
    const Value* other = Argument(arguments, 0, "default_value");
    const Value* boolean = Argument(arguments, 1, "boolean");
    const bool use =
        value.undefined() || (boolean != nullptr && boolean->Truth() && !value.Truth());
    if (!use) return value;
    return other != nullptr ? *other : Value::Text("");
  }
  if (name == "join") {
    RETURN_IF_ERROR(CheckArguments(name, arguments, 1));
    std::string between;
    if (!arguments.positional.empty()) {
      ASSIGN_OR_RETURN(between, TextArgument(name, arguments, 0));
    }
    return Join(value, between);
  }
  if (name == "replace") {
    ASSIGN_OR_RETURN(const std::string text, ToText(value));
    return Replace(text, arguments);
  }
  RETURN_IF_ERROR(CheckArguments(name, arguments, 0));
  if (name == "length" || name == "count") return Length(value);
  if (name == "int") return ToInteger(value);
  if (name == "items") {
    if (value.undefined()) return Value::MakeList({});
    if (value.dict() == nullptr) return Bad(absl::StrCat("items of ", value.TypeName()));
    return ItemsOf(*value.dict());
  }
  if (name == "list" || name == "first" || name == "last") {
    ASSIGN_OR_RETURN(List list, Iterate(value));
    if (name == "list") return Value::MakeList(std::move(list));
    if (list.empty()) return Value();
    return name == "first" ? list.front() : list.back();
  }
  ASSIGN_OR_RETURN(std::string text, ToText(value));
  return Value::Text(name == "trim" ? Strip(text, nullptr, true, true) : std::move(text));
}

absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& value,
                               const std::vector<Value>& arguments) {
  const size_t wanted = TestTakesArgument(name) ? 1 : 0;
  if (arguments.size() != wanted) {
    return Bad(absl::StrCat("the test \"", name, "\" takes ", wanted, " arguments, not ",
                            arguments.size()));
  }
  if (name == "defined") return !value.undefined();
  if (name == "undefined") return value.undefined();
  if (name == "none") return value.none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "iterable" || name == "sequence") {
    return value.text() != nullptr || value.list() != nullptr || value.dict() != nullptr ||
           value.undefined();
  }
  double number = 0;
  int64_t integer = 0;
  if (name == "number") return value.AsNumber(&number);
  if (name == "integer") return value.integer() != nullptr;
  if (name == "float") return value.real() != nullptr;
  if (name == "boolean") return value.boolean() != nullptr;
  if (name == "true") return value.boolean() != nullptr && *value.boolean();
  if (name == "false") return value.boolean() != nullptr && !*value.boolean();
  if (name == "ne") return !(value == arguments[0]);
  if (name == "odd" || name == "even") {
    if (!value.AsInteger(&integer)) return Bad(absl::StrCat(name, " of ", value.TypeName()));
    return (integer % 2 == 0) == (name == "even");
  }
  if (name == "in") {
    ASSIGN_OR_RETURN(const List list, Iterate(arguments[0]));
    return std::find(list.begin(), list.end(), value) != list.end();
  }
  return value == arguments[0];  // equalto, eq, ==
}

absl::StatusOr<Value> CallFunction(absl::string_view name, const Arguments& arguments) {
  if (name == "range") return Range(arguments);
  if (name == "raise_exception") {
    ASSIGN_OR_RETURN(const std::string message, TextArgument(name, arguments, 0));
    return Bad(message);
  }
  if (!arguments.positional.empty()) {
    return absl::UnimplementedError(absl::StrCat(name, " of arguments without names"));
  }
  Dict members(arguments.named.begin(), arguments.named.end());
  return name == "namespace" ? Value::Namespace(std::move(members))
                             : Value::MakeDict(std::move(members));
}

absl::StatusOr<Value> CallMethod(const Value& object, absl::string_view name,
                                 const Arguments& arguments) {
  if (object.text() != nullptr) return TextMethod(*object.text(), name, arguments);
  if (object.dict() != nullptr) return DictMethod(object, name, arguments);
  return Bad(absl::StrCat(object.TypeName(), " has no method \"", name, "\""));
}

}  // namespace oscarkv::jinja
