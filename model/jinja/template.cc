#include "model/jinja/template.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/ast.h"
#include "model/jinja/builtins.h"
#include "model/jinja/parser.h"

namespace oscarkv::jinja {
namespace {

constexpr size_t kMaxTemplateBytes = 1 << 20;

bool FloorDivide(int64_t a, int64_t b, int64_t* quotient, int64_t* remainder) {
  if (b == 0 || (b == -1 && a == std::numeric_limits<int64_t>::min())) return false;
  *quotient = a / b;
  *remainder = a % b;
  if (*remainder != 0 && (*remainder < 0) != (b < 0)) {
    --*quotient;
    *remainder += b;
  }
  return true;
}

class Renderer {
 public:
  Renderer(const Dict& variables, const RenderLimits& limits) : limits_(limits) {
    scopes_.push_back(variables);
  }

  absl::Status Run(const std::vector<Node>& nodes, std::string* out) {
    for (const Node& node : nodes) RETURN_IF_ERROR(RunNode(node, out));
    return absl::OkStatus();
  }

 private:
  static absl::Status At(int line, const absl::Status& status) {
    if (status.ok()) return status;
    const std::string message(status.message());
    if (message.rfind("line ", 0) == 0) return status;  // said further inside
    return absl::Status(status.code(), absl::StrCat("line ", line, ": ", message));
  }
  static absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(what); }

  absl::Status Spend(size_t steps) {
    steps_ += steps;
    if (steps_ <= limits_.max_steps) return absl::OkStatus();
    return Bad(absl::StrCat("the template takes more than ", limits_.max_steps, " steps"));
  }
  absl::Status Emit(absl::string_view text, std::string* out) {
    RETURN_IF_ERROR(Spend(1 + text.size() / 64));
    if (out->size() + text.size() > limits_.max_output_bytes) {
      return Bad(absl::StrCat("the template makes more than ", limits_.max_output_bytes, " bytes"));
    }
    out->append(text.data(), text.size());
    return absl::OkStatus();
  }

  Value Look(absl::string_view name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      for (const auto& [key, value] : *scope) {
        if (key == name) return value;
      }
    }
    return Value();
  }
  void Assign(const std::string& name, Value value) {
    for (auto& [key, old] : scopes_.back()) {
      if (key == name) {
        old = std::move(value);
        return;
      }
    }
    scopes_.back().emplace_back(name, std::move(value));
  }

  absl::Status RunNode(const Node& node, std::string* out) {
    switch (node.kind) {
      case NodeKind::kText:
        return At(node.line, Emit(node.text, out));
      case NodeKind::kOutput: {
        ASSIGN_OR_RETURN(const Value value, Eval(*node.expr));
        const absl::StatusOr<std::string> text = ToText(value);
        if (!text.ok()) return At(node.line, text.status());
        return At(node.line, Emit(*text, out));
      }
      case NodeKind::kIf: {
        ASSIGN_OR_RETURN(const Value condition, Eval(*node.expr));
        return Run(condition.Truth() ? node.body : node.otherwise, out);
      }
      case NodeKind::kFor:
        return Loop(node, out);
      case NodeKind::kSet:
        return Set(node);
    }
    return absl::OkStatus();
  }

  absl::Status Set(const Node& node) {
    Value value;
    if (node.expr != nullptr) {
      ASSIGN_OR_RETURN(value, Eval(*node.expr));
    } else {
      std::string text;
      scopes_.emplace_back();  // what is set inside stays there
      const absl::Status run = Run(node.body, &text);
      scopes_.pop_back();
      RETURN_IF_ERROR(run);
      value = Value::Text(std::move(text));
    }
    if (node.text.empty()) {
      Assign(node.targets[0], std::move(value));
      return absl::OkStatus();
    }
    const Value space = Look(node.targets[0]);
    if (space.space() == nullptr) {
      return At(node.line, Bad(absl::StrCat("cannot set members of \"", node.targets[0],
                                            "\": only those of a namespace")));
    }
    if (value.space() != nullptr) return At(node.line, Bad("a namespace inside of a namespace"));
    for (auto& [key, old] : *space.space()) {
      if (key == node.text) {
        old = std::move(value);
        return absl::OkStatus();
      }
    }
    space.space()->emplace_back(node.text, std::move(value));
    return absl::OkStatus();
  }

  // Puts an iteration's names into the innermost scope.
  absl::Status Bind(const Node& node, const Value& entry) {
    if (node.targets.size() == 1) {
      Assign(node.targets[0], entry);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const List parts, Iterate(entry));
    if (parts.size() != node.targets.size()) {
      return Bad(absl::StrCat("cannot unpack ", parts.size(), " values into ", node.targets.size(),
                              " names"));
    }
    for (size_t i = 0; i < parts.size(); ++i) Assign(node.targets[i], parts[i]);
    return absl::OkStatus();
  }

  absl::StatusOr<List> LoopEntries(const Node& node) {
    ASSIGN_OR_RETURN(const Value over, Eval(*node.expr));
    absl::StatusOr<List> entries = Iterate(over);
    if (!entries.ok()) return At(node.line, entries.status());
    RETURN_IF_ERROR(At(node.line, Spend(entries->size())));
    if (node.condition == nullptr) return entries;
    List chosen;
    for (const Value& entry : *entries) {
      scopes_.emplace_back();
      absl::Status status = At(node.line, Bind(node, entry));
      absl::StatusOr<Value> passes = Value();
      if (status.ok()) passes = Eval(*node.condition);
      scopes_.pop_back();
      RETURN_IF_ERROR(status);
      RETURN_IF_ERROR(passes.status());
      if (passes->Truth()) chosen.push_back(entry);
    }
    return chosen;
  }

  absl::Status Loop(const Node& node, std::string* out) {
    ASSIGN_OR_RETURN(const List entries, LoopEntries(node));
    if (entries.empty()) return Run(node.otherwise, out);
    const auto n = static_cast<int64_t>(entries.size());
    for (int64_t i = 0; i < n; ++i) {
      RETURN_IF_ERROR(At(node.line, Spend(1)));
      const auto at = static_cast<size_t>(i);
      scopes_.push_back(
          {{"loop", Value::MakeDict({{"index", Value::Int(i + 1)},
                                     {"index0", Value::Int(i)},
                                     {"revindex", Value::Int(n - i)},
                                     {"revindex0", Value::Int(n - i - 1)},
                                     {"first", Value::Bool(i == 0)},
                                     {"last", Value::Bool(i == n - 1)},
                                     {"length", Value::Int(n)},
                                     {"previtem", i > 0 ? entries[at - 1] : Value()},
                                     {"nextitem", i + 1 < n ? entries[at + 1] : Value()}})}});
      absl::Status status = At(node.line, Bind(node, entries[at]));
      if (status.ok()) status = Run(node.body, out);
      scopes_.pop_back();
      RETURN_IF_ERROR(status);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Value> Eval(const Expr& e) {
    RETURN_IF_ERROR(At(e.line, Spend(1)));
    absl::StatusOr<Value> value = EvalKind(e);
    if (!value.ok()) return At(e.line, value.status());
    if (value->text() != nullptr && e.kind != ExprKind::kName && e.kind != ExprKind::kLiteral) {
      RETURN_IF_ERROR(At(e.line, Spend(value->text()->size() / 64)));
      if (value->text()->size() > limits_.max_output_bytes) {
        return At(e.line,
                  Bad(absl::StrCat("a text of more than ", limits_.max_output_bytes, " bytes")));
      }
    }
    return value;
  }

  absl::StatusOr<Value> EvalKind(const Expr& e) {
    switch (e.kind) {
      case ExprKind::kLiteral:
        return e.literal;
      case ExprKind::kName:
        return Look(e.text);
      case ExprKind::kList: {
        ASSIGN_OR_RETURN(List list, EvalAll(e, 0));
        return Value::MakeList(std::move(list));
      }
      case ExprKind::kDict:
        return MakeDict(e);
      case ExprKind::kNot: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.kids[0]));
        return Value::Bool(!value.Truth());
      }
      case ExprKind::kAnd:
      case ExprKind::kOr: {
        ASSIGN_OR_RETURN(Value left, Eval(*e.kids[0]));
        if (left.Truth() == (e.kind == ExprKind::kOr)) return left;
        return Eval(*e.kids[1]);
      }
      case ExprKind::kCondition: {
        ASSIGN_OR_RETURN(const Value condition, Eval(*e.kids[1]));
        if (condition.Truth()) return Eval(*e.kids[0]);
        return e.kids[2] == nullptr ? Value() : Eval(*e.kids[2]);
      }
      case ExprKind::kAttribute:
      case ExprKind::kIndex:
      case ExprKind::kSlice:
        return Select(e);
      case ExprKind::kNegative: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.kids[0]));
        if (value.real() != nullptr) return Value::Float(-*value.real());
        return Arithmetic("-", Value::Int(0), value);
      }
      case ExprKind::kBinary: {
        ASSIGN_OR_RETURN(const Value left, Eval(*e.kids[0]));
        ASSIGN_OR_RETURN(const Value right, Eval(*e.kids[1]));
        return Binary(e.text, left, right);
      }
      default:
        return Call(e);
    }
  }

  absl::StatusOr<List> EvalAll(const Expr& e, size_t from) {
    List values;
    for (size_t i = from; i < e.kids.size(); ++i) {
      ASSIGN_OR_RETURN(Value value, Eval(*e.kids[i]));
      values.push_back(std::move(value));
    }
    return values;
  }

  absl::StatusOr<Value> MakeDict(const Expr& e) {
    ASSIGN_OR_RETURN(const List parts, EvalAll(e, 0));
    Dict dict;
    for (size_t i = 0; i < parts.size(); i += 2) {
      if (parts[i].text() == nullptr) return Bad("a dict's key that is not a text");
      const auto same = std::find_if(dict.begin(), dict.end(), [&](const auto& member) {
        return member.first == *parts[i].text();
      });
      if (same != dict.end()) {
        same->second = parts[i + 1];
      } else {
        dict.emplace_back(*parts[i].text(), parts[i + 1]);
      }
    }
    return Value::MakeDict(std::move(dict));
  }

  absl::StatusOr<Value> Call(const Expr& e) {
    const bool function = e.kind == ExprKind::kCall;
    Value object;
    if (!function) {
      ASSIGN_OR_RETURN(object, Eval(*e.kids[0]));
    }
    Arguments arguments;
    ASSIGN_OR_RETURN(arguments.positional, EvalAll(e, function ? 0 : 1));
    for (const auto& [name, expr] : e.named) {
      ASSIGN_OR_RETURN(Value value, Eval(*expr));
      arguments.named.emplace_back(name, std::move(value));
    }
    // What a call looks at, which may be much more than what it makes.
    size_t work = object.list() != nullptr   ? object.list()->size()
                  : object.text() != nullptr ? object.text()->size() / 64
                                             : 0;
    RETURN_IF_ERROR(Spend(work));
    switch (e.kind) {
      case ExprKind::kCall:
        return CallFunction(e.text, arguments);
      case ExprKind::kMethod:
        if (object.undefined())
          return Bad(absl::StrCat("cannot call \"", e.text, "\" of an undefined value"));
        return CallMethod(object, e.text, arguments);
      case ExprKind::kFilter:
        return ApplyFilter(e.text, object, arguments);
      default: {
        ASSIGN_OR_RETURN(const bool passes, ApplyTest(e.text, object, arguments.positional));
        return Value::Bool(passes);
      }
    }
  }

  absl::StatusOr<Value> Select(const Expr& e) {
    ASSIGN_OR_RETURN(const Value object, Eval(*e.kids[0]));
    if (object.undefined()) {
      const Expr& from = *e.kids[0];
      return Bad(absl::StrCat(from.text.empty() ? "the value" : absl::StrCat("\"", from.text, "\""),
                              " is undefined: it has no members"));
    }
    if (e.kind == ExprKind::kAttribute) return object.Member(e.text);
    if (e.kind == ExprKind::kSlice) return Slice(e, object);
    ASSIGN_OR_RETURN(const Value index, Eval(*e.kids[1]));
    if (index.text() != nullptr) return object.Member(*index.text());
    int64_t i = 0;
    if (!index.AsInteger(&i)) return Value();
    const int64_t n = object.list() != nullptr   ? static_cast<int64_t>(object.list()->size())
                      : object.text() != nullptr ? static_cast<int64_t>(Length(*object.text()))
                                                 : 0;
    if (i < 0) i += n;
    if (i < 0 || i >= n) return Value();
    const auto at = static_cast<size_t>(i);
    if (object.list() != nullptr) return (*object.list())[at];
    return Value::Text(Substring(*object.text(), at, at + 1));
  }

  absl::StatusOr<Value> Slice(const Expr& e, const Value& object) {
    int64_t part[3] = {0, 0, 1};
    bool given[3] = {};
    for (size_t i = 0; i < 3; ++i) {
      if (e.kids[i + 1] == nullptr) continue;
      ASSIGN_OR_RETURN(const Value value, Eval(*e.kids[i + 1]));
      if (value.none()) continue;
      if (!value.AsInteger(&part[i])) return Bad("a slice's bounds must be integers");
      given[i] = true;
    }
    const bool text = object.text() != nullptr;
    if (!text && object.list() == nullptr) {
      return Bad(absl::StrCat("cannot take a slice of ", object.TypeName()));
    }
    const int64_t step = part[2];
    if (step != 1 && (step != -1 || text)) {
      return absl::UnimplementedError(absl::StrCat("a slice with a step of ", step));
    }
    const auto n = static_cast<int64_t>(text ? Length(*object.text()) : object.list()->size());
    // As Python's slice.indices().
    const int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    const auto clamp = [&](int64_t i) { return std::clamp(i < 0 ? i + n : i, low, high); };
    const int64_t begin = given[0] ? clamp(part[0]) : step < 0 ? high : low;
    const int64_t end = given[1] ? clamp(part[1]) : step < 0 ? low : high;
    if (text) {
      return Value::Text(begin >= end ? ""
                                      : Substring(*object.text(), static_cast<size_t>(begin),
                                                  static_cast<size_t>(end)));
    }
    List out;
    for (int64_t i = begin; step < 0 ? i > end : i < end; i += step) {
      out.push_back((*object.list())[static_cast<size_t>(i)]);
    }
    RETURN_IF_ERROR(Spend(out.size()));
    return Value::MakeList(std::move(out));
  }

  absl::StatusOr<Value> Binary(const std::string& op, const Value& a, const Value& b) {
    if (op == "==" || op == "!=") return Value::Bool((a == b) == (op == "=="));
    if (op == "in") return Contains(b, a);
    if (op == "~") {
      ASSIGN_OR_RETURN(std::string left, ToText(a));
      ASSIGN_OR_RETURN(const std::string right, ToText(b));
      return Value::Text(left + right);
    }
    if (op == "+" && a.text() != nullptr && b.text() != nullptr) {
      return Value::Text(*a.text() + *b.text());
    }
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      List out = *a.list();
      out.insert(out.end(), b.list()->begin(), b.list()->end());
      RETURN_IF_ERROR(Spend(out.size()));
      return Value::MakeList(std::move(out));
    }
    const bool compares = op[0] == '<' || op[0] == '>';
    double x = 0, y = 0;
    int order = 0;
    if (a.text() != nullptr && b.text() != nullptr && compares) {
      order = a.text()->compare(*b.text());
    } else if (a.AsNumber(&x) && b.AsNumber(&y)) {
      if (!compares) return Arithmetic(op, a, b);
      order = x < y ? -1 : x > y;
    } else {
      return Bad(absl::StrCat("\"", op, "\" of ", a.TypeName(), " and ", b.TypeName()));
    }
    if (op == "<") return Value::Bool(order < 0);
    if (op == ">") return Value::Bool(order > 0);
    return Value::Bool(op == "<=" ? order <= 0 : order >= 0);
  }

  static absl::StatusOr<Value> Arithmetic(const std::string& op, const Value& a, const Value& b) {
    int64_t i = 0, j = 0, result = 0, remainder = 0;
    if (a.AsInteger(&i) && b.AsInteger(&j) && op != "/") {
      bool overflow = false;
      if (op == "+") {
        overflow = __builtin_add_overflow(i, j, &result);
      } else if (op == "-") {
        overflow = __builtin_sub_overflow(i, j, &result);
      } else if (op == "*") {
        overflow = __builtin_mul_overflow(i, j, &result);
      } else if (!FloorDivide(i, j, &result, &remainder)) {
        return Bad("a division by zero");
      } else if (op == "%") {
        result = remainder;
      }
      if (overflow) return Bad(absl::StrCat("\"", op, "\" goes beyond 64 bits"));
      return Value::Int(result);
    }
    double x = 0, y = 0;
    if (!a.AsNumber(&x) || !b.AsNumber(&y)) {
      return Bad(absl::StrCat("\"", op, "\" of ", a.TypeName(), " and ", b.TypeName()));
    }
    if (op == "+") return Value::Float(x + y);
    if (op == "-") return Value::Float(x - y);
    if (op == "*") return Value::Float(x * y);
    if (y == 0) return Bad("a division by zero");
    if (op == "/") return Value::Float(x / y);
    const double floor = std::floor(x / y);
    return Value::Float(op == "//" ? floor : x - floor * y);
  }

  absl::StatusOr<Value> Contains(const Value& whole, const Value& part) {
    if (whole.text() != nullptr) {
      if (part.text() == nullptr) {
        return Bad(absl::StrCat("\"in\" a text of ", part.TypeName()));
      }
      RETURN_IF_ERROR(Spend(whole.text()->size() / 64));
      return Value::Bool(whole.text()->find(*part.text()) != std::string::npos);
    }
    if (whole.dict() != nullptr) {
      return Value::Bool(part.text() != nullptr && !whole.Member(*part.text()).undefined());
    }
    if (whole.list() != nullptr) {
      RETURN_IF_ERROR(Spend(whole.list()->size()));
      return Value::Bool(std::find(whole.list()->begin(), whole.list()->end(), part) !=
                         whole.list()->end());
    }
    if (whole.undefined()) return Value::Bool(false);
    return Bad(absl::StrCat("\"in\" ", whole.TypeName()));
  }

  const RenderLimits limits_;
  size_t steps_ = 0;
  std::deque<Dict> scopes_;
};

}  // namespace

Template::Template(std::vector<Node> nodes) : nodes_(std::move(nodes)) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<Template>> Template::Parse(absl::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a template of ", source.size(), " bytes, the limit is ", kMaxTemplateBytes));
  }
  ASSIGN_OR_RETURN(std::vector<Node> nodes, jinja::Parse(source));
  return std::unique_ptr<Template>(new Template(std::move(nodes)));
}

absl::StatusOr<std::string> Template::Render(const Dict& variables,
                                             const RenderLimits& limits) const {
  std::string out;
  RETURN_IF_ERROR(Renderer(variables, limits).Run(nodes_, &out));
  return out;
}

}  // namespace oscarkv::jinja
