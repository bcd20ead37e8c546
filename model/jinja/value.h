// Values of templates, as Python has them.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv::jinja {

class Value;
using List = std::vector<Value>;
// In the order of insertion. Small: looked through from the front.
using Dict = std::vector<std::pair<std::string, Value>>;

// Copies are cheap: texts, lists and dicts are shared. Only a namespace's dict ever changes.
class Value {
 public:
  struct Undefined {};
  struct None {};

  Value() = default;  // undefined
  static Value MakeNone() { return Value(Data(None{})); }
  static Value Bool(bool v) { return Value(Data(v)); }
  static Value Int(int64_t v) { return Value(Data(v)); }
  static Value Float(double v) { return Value(Data(v)); }
  static Value Text(std::string v) {
    return Value(Data(std::make_shared<const std::string>(std::move(v))));
  }
  static Value MakeList(List v) { return Value(Data(std::make_shared<const List>(std::move(v)))); }
  static Value MakeDict(Dict v) { return Value(Data(std::make_shared<const Dict>(std::move(v)))); }
  static Value Namespace(Dict v) {
    return Value(Data(Space{std::make_shared<Dict>(std::move(v))}));
  }
  // kInvalidArgument: an integer beyond 64 bits.
  static absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json);

  bool undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool none() const { return std::holds_alternative<None>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const std::string* text() const { return Shared<const std::string>(); }
  const List* list() const { return Shared<const List>(); }
  const Dict* dict() const { return Shared<const Dict>(); }  // not a namespace
  Dict* space() const {
    const Space* s = std::get_if<Space>(&data_);
    return s == nullptr ? nullptr : s->members.get();
  }
  // Integers and booleans, as Python counts with both.
  bool AsInteger(int64_t* out) const;
  bool AsNumber(double* out) const;

  bool Truth() const;
  bool operator==(const Value& other) const;
  const char* TypeName() const;  // for messages: "a text"
  // The member of a dict or namespace; undefined when there is none.
  Value Member(absl::string_view key) const;

 private:
  struct Space {
    std::shared_ptr<Dict> members;
  };
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>, Space>;
  explicit Value(Data data) : data_(std::move(data)) {}
  template <typename T>
  T* Shared() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&data_);
    return p == nullptr ? nullptr : p->get();
  }

  Data data_;
};

// str(value): kInvalidArgument for lists, dicts and namespaces, whose Python form is not made here.
absl::StatusOr<std::string> ToText(const Value& value);
// json.dumps(value, ensure_ascii=False, indent=indent); indent < 0: none.
absl::StatusOr<std::string> ToJson(const Value& value, int indent);
// repr(float)
std::string PythonFloat(double v);

// Texts count in code points.
size_t Length(absl::string_view utf8);
// text[begin:end] with 0 <= begin <= end <= Length(text).
std::string Substring(absl::string_view utf8, size_t begin, size_t end);
// str.strip and its halves; `characters` null: white space.
std::string Strip(absl::string_view text, const std::string* characters, bool left, bool right);

}  // namespace oscarkv::jinja
