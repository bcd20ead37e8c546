#include "model/jinja/parser.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/lexer.h"

namespace oscarkv::jinja {
namespace {

constexpr int kMaxDepth = 100;  // of tags and of expressions

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::vector<Node>> Run() {
    ASSIGN_OR_RETURN(std::vector<Node> body, Body({}));
    return body;
  }

 private:
  // One level deeper, for as long as it lives.
  struct Level {
    explicit Level(int* depth) : depth(depth) { ++*depth; }
    ~Level() { --*depth; }
    int* const depth;
  };
  absl::Status TooDeep() const {
    return depth_ <= kMaxDepth ? absl::OkStatus()
                               : Error(absl::StrCat("nested deeper than ", kMaxDepth));
  }

  const Token& Now() const { return tokens_[at_]; }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", Now().line, ": ", what));
  }
  absl::Status Outside(absl::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("line ", Now().line, ": ", what,
                                                 " is outside of the supported subset of Jinja"));
  }
  std::string Seen() const {
    return Now().kind == TokenKind::kEnd ? "the template's end"
                                         : absl::StrCat("\"", Now().text, "\"");
  }
  bool Is(TokenKind kind, absl::string_view text) const {
    return Now().kind == kind && Now().text == text;
  }
  bool IsOperator(absl::string_view text) const { return Is(TokenKind::kOperator, text); }
  bool IsName(absl::string_view text) const { return Is(TokenKind::kName, text); }
  bool Take(absl::string_view op) {
    if (!IsOperator(op)) return false;
    ++at_;
    return true;
  }
  bool TakeName(absl::string_view name) {
    if (!IsName(name)) return false;
    ++at_;
    return true;
  }
  absl::Status Expect(absl::string_view op) {
    if (Take(op)) return absl::OkStatus();
    return Error(absl::StrCat("expected \"", op, "\", not ", Seen()));
  }
  absl::Status ExpectKind(TokenKind kind, absl::string_view what) {
    if (Now().kind != kind) return Error(absl::StrCat("expected ", what, ", not ", Seen()));
    ++at_;
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Identifier() {
    if (Now().kind != TokenKind::kName) return Error(absl::StrCat("expected a name, not ", Seen()));
    return tokens_[at_++].text;
  }
  ExprPtr New(ExprKind kind, std::string text = "") const {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->line = Now().line;
    e->text = std::move(text);
    return e;
  }
  static ExprPtr Join(ExprPtr e, ExprPtr a, ExprPtr b = nullptr) {
    e->kids.push_back(std::move(a));
    if (b != nullptr) e->kids.push_back(std::move(b));
    return e;
  }

  // Up to a tag named one of `ends`, whose name is left to be read; without ends up to the end.
  absl::StatusOr<std::vector<Node>> Body(const std::vector<absl::string_view>& ends) {
    const Level level(&depth_);
    RETURN_IF_ERROR(TooDeep());
    std::vector<Node> body;
    while (true) {
      Node node;
      node.line = Now().line;
      switch (Now().kind) {
        case TokenKind::kEnd:
          if (ends.empty()) return body;
          return Error(absl::StrCat("the template ends without ", absl::StrJoin(ends, " or ")));
        case TokenKind::kText:
          node.text = tokens_[at_++].text;
          break;
        case TokenKind::kOutputBegin: {
          ++at_;
          node.kind = NodeKind::kOutput;
          ASSIGN_OR_RETURN(node.expr, Tuple());
          RETURN_IF_ERROR(ExpectKind(TokenKind::kOutputEnd, "}}"));
          break;
        }
        default: {
          ++at_;  // {%
          for (absl::string_view end : ends) {
            if (IsName(end)) return body;
          }
          RETURN_IF_ERROR(Statement(&node));
        }
      }
      body.push_back(std::move(node));
    }
  }

  absl::Status EndTag() { return ExpectKind(TokenKind::kBlockEnd, "%}"); }

  absl::Status Statement(Node* node) {
    if (TakeName("if")) return If(node);
    if (TakeName("for")) return For(node);
    if (TakeName("set")) return Set(node);
    for (absl::string_view end : {"endif", "endfor", "endset", "else", "elif"}) {
      if (IsName(end)) return Error(absl::StrCat("a ", end, " without its beginning"));
    }
    if (Now().kind != TokenKind::kName) return Error(absl::StrCat("expected a tag, not ", Seen()));
    return Outside(absl::StrCat("the tag \"", Now().text, "\""));
  }

  absl::Status If(Node* node) {
    const Level level(&depth_);
    RETURN_IF_ERROR(TooDeep());
    node->kind = NodeKind::kIf;
    ASSIGN_OR_RETURN(node->expr, Expression());
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(node->body, Body({"elif", "else", "endif"}));
    if (TakeName("elif")) {
      Node chained;
      chained.line = Now().line;
      RETURN_IF_ERROR(If(&chained));
      node->otherwise.push_back(std::move(chained));
      return absl::OkStatus();
    }
    if (TakeName("else")) {
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(node->otherwise, Body({"endif"}));
    }
    ++at_;  // endif
    return EndTag();
  }

  absl::Status For(Node* node) {
    node->kind = NodeKind::kFor;
    do {
      ASSIGN_OR_RETURN(std::string name, Identifier());
      node->targets.push_back(std::move(name));
    } while (Take(","));
    if (!TakeName("in")) return Error(absl::StrCat("expected \"in\", not ", Seen()));
    // Without a condition, whose "if" begins the loop's filter.
    ASSIGN_OR_RETURN(node->expr, Or());
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(node->condition, Expression());
    }
    if (IsName("recursive")) return Outside("a recursive loop");
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(node->body, Body({"else", "endfor"}));
    if (TakeName("else")) {
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(node->otherwise, Body({"endfor"}));
    }
    ++at_;  // endfor
    return EndTag();
  }

  absl::Status Set(Node* node) {
    node->kind = NodeKind::kSet;
    ASSIGN_OR_RETURN(std::string name, Identifier());
    node->targets.push_back(std::move(name));
    if (Take(".")) {
      ASSIGN_OR_RETURN(node->text, Identifier());
    }
    if (IsOperator(",")) return Outside("setting several names at once");
    if (Take("=")) {
      ASSIGN_OR_RETURN(node->expr, Tuple());
      return EndTag();
    }
    if (IsOperator("|")) return Outside("a filter on a set block");
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(node->body, Body({"endset"}));
    ++at_;  // endset
    return EndTag();
  }

  // a, b, c: a list of them; a alone: itself.
  absl::StatusOr<ExprPtr> Tuple() {
    ASSIGN_OR_RETURN(ExprPtr first, Expression());
    if (!IsOperator(",")) return first;
    ExprPtr list = Join(New(ExprKind::kList), std::move(first));
    while (Take(",")) {
      if (Now().kind != TokenKind::kName && Now().kind != TokenKind::kString &&
          Now().kind != TokenKind::kInteger && Now().kind != TokenKind::kFloat &&
          !IsOperator("(") && !IsOperator("[") && !IsOperator("{") && !IsOperator("-")) {
        break;  // a comma at the end
      }
      ASSIGN_OR_RETURN(ExprPtr next, Expression());
      list->kids.push_back(std::move(next));
    }
    return list;
  }

  absl::StatusOr<ExprPtr> Expression() {
    const Level level(&depth_);
    RETURN_IF_ERROR(TooDeep());
    ASSIGN_OR_RETURN(ExprPtr value, Or());
    while (IsName("if")) {
      ExprPtr e = New(ExprKind::kCondition);
      ++at_;
      ASSIGN_OR_RETURN(ExprPtr condition, Or());
      ExprPtr other;
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(other, Expression());
      }
      e->kids.push_back(std::move(value));
      e->kids.push_back(std::move(condition));
      e->kids.push_back(std::move(other));
      value = std::move(e);
    }
    return value;
  }

  absl::StatusOr<ExprPtr> Or() {
    ASSIGN_OR_RETURN(ExprPtr left, And());
    while (IsName("or")) {
      ExprPtr e = New(ExprKind::kOr);
      ++at_;
      ASSIGN_OR_RETURN(ExprPtr right, And());
      left = Join(std::move(e), std::move(left), std::move(right));
    }
    return left;
  }

  absl::StatusOr<ExprPtr> And() {
    ASSIGN_OR_RETURN(ExprPtr left, Not());
    while (IsName("and")) {
      ExprPtr e = New(ExprKind::kAnd);
      ++at_;
      ASSIGN_OR_RETURN(ExprPtr right, Not());
      left = Join(std::move(e), std::move(left), std::move(right));
    }
    return left;
  }

  absl::StatusOr<ExprPtr> Not() {
    if (!IsName("not")) return Compare();
    const Level level(&depth_);
    RETURN_IF_ERROR(TooDeep());
    ExprPtr e = New(ExprKind::kNot);
    ++at_;
    ASSIGN_OR_RETURN(ExprPtr value, Not());
    return Join(std::move(e), std::move(value));
  }

  // The comparison that begins here, in `op`; consumed.
  bool TakeComparison(std::string* op) {
    for (absl::string_view name : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (!Take(name)) continue;
      *op = std::string(name);
      return true;
    }
    *op = "in";
    if (TakeName("in")) return true;
    if (!IsName("not") || tokens_[at_ + 1].kind != TokenKind::kName ||
        tokens_[at_ + 1].text != "in") {
      return false;
    }
    at_ += 2;
    *op = "not in";
    return true;
  }

  absl::StatusOr<ExprPtr> Compare() {
    ASSIGN_OR_RETURN(ExprPtr left, Sum());
    ExprPtr e = New(ExprKind::kBinary);
    if (!TakeComparison(&e->text)) return left;
    ASSIGN_OR_RETURN(ExprPtr right, Sum());
    const bool negated = e->text == "not in";
    if (negated) e->text = "in";
    ExprPtr compared = Join(std::move(e), std::move(left), std::move(right));
    std::string another;
    if (TakeComparison(&another)) return Outside("a chain of comparisons");
    return negated ? Join(New(ExprKind::kNot), std::move(compared)) : std::move(compared);
  }

  // Jinja's order, loosest first: + -, then ~, then * / // %, then unary minus.
  absl::StatusOr<ExprPtr> Sum() { return Chain({"+", "-"}, &Parser::Concat); }
  absl::StatusOr<ExprPtr> Concat() { return Chain({"~"}, &Parser::Product); }
  absl::StatusOr<ExprPtr> Product() { return Chain({"*", "/", "//", "%"}, &Parser::Unary); }

  absl::StatusOr<ExprPtr> Chain(const std::vector<absl::string_view>& ops,
                                absl::StatusOr<ExprPtr> (Parser::*next)()) {
    ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
    while (true) {
      ExprPtr e = New(ExprKind::kBinary);
      for (absl::string_view op : ops) {
        if (e->text.empty() && Take(op)) e->text = std::string(op);
      }
      if (e->text.empty()) return left;
      ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
      left = Join(std::move(e), std::move(left), std::move(right));
    }
  }

  absl::StatusOr<ExprPtr> Unary() {
    ASSIGN_OR_RETURN(ExprPtr value, Unfiltered());
    return Filtered(std::move(value));
  }

  absl::StatusOr<ExprPtr> Unfiltered() {
    const Level level(&depth_);
    RETURN_IF_ERROR(TooDeep());
    if (IsOperator("-")) {
      ExprPtr e = New(ExprKind::kNegative);
      ++at_;
      ASSIGN_OR_RETURN(ExprPtr value, Unfiltered());
      return Join(std::move(e), std::move(value));
    }
    ASSIGN_OR_RETURN(ExprPtr value, Primary());
    ASSIGN_OR_RETURN(value, Postfix(std::move(value)));
    if (IsOperator("**")) return Outside("the operator **");
    return value;
  }

  absl::StatusOr<ExprPtr> Literal(Value value) {
    ExprPtr e = New(ExprKind::kLiteral);
    e->literal = std::move(value);
    ++at_;
    return e;
  }

  absl::StatusOr<ExprPtr> Primary() {
    const Token& token = Now();
    switch (token.kind) {
      case TokenKind::kString: {
        std::string text = token.text;
        while (tokens_[at_ + 1].kind == TokenKind::kString) text += tokens_[++at_].text;
        return Literal(Value::Text(std::move(text)));
      }
      case TokenKind::kInteger: {
        int64_t value = 0;
        if (!absl::SimpleAtoi(token.text, &value)) return Error("an integer beyond 64 bits");
        return Literal(Value::Int(value));
      }
      case TokenKind::kFloat: {
        double value = 0;
        if (!absl::SimpleAtod(token.text, &value)) return Error("not a number");
        return Literal(Value::Float(value));
      }
      case TokenKind::kName:
        return Name();
      default:
        break;
    }
    if (Take("(")) return Parenthesis();
    if (Take("[")) return ListLiteral();
    if (Take("{")) return DictLiteral();
    return Error(absl::StrCat("expected a value, not ", Seen()));
  }

  absl::StatusOr<ExprPtr> Name() {
    const std::string& name = Now().text;
    if (name == "true" || name == "True") return Literal(Value::Bool(true));
    if (name == "false" || name == "False") return Literal(Value::Bool(false));
    if (name == "none" || name == "None") return Literal(Value::MakeNone());
    for (absl::string_view word : {"if", "else", "and", "or", "in", "is", "not"}) {
      if (name == word) return Error(absl::StrCat("expected a value, not ", Seen()));
    }
    ExprPtr e = New(ExprKind::kName, name);
    ++at_;
    if (!IsOperator("(")) return e;
    if (!IsFunction(e->text)) return Outside(absl::StrCat("the function \"", e->text, "\""));
    e->kind = ExprKind::kCall;
    RETURN_IF_ERROR(Arguments(e.get()));
    return e;
  }

  absl::StatusOr<ExprPtr> Parenthesis() {
    if (Take(")")) return New(ExprKind::kList);
    ASSIGN_OR_RETURN(ExprPtr value, Tuple());
    RETURN_IF_ERROR(Expect(")"));
    return value;
  }

  absl::StatusOr<ExprPtr> ListLiteral() {
    ExprPtr list = New(ExprKind::kList);
    while (!Take("]")) {
      ASSIGN_OR_RETURN(ExprPtr entry, Expression());
      list->kids.push_back(std::move(entry));
      if (!IsOperator("]")) RETURN_IF_ERROR(Expect(","));
    }
    return list;
  }

  absl::StatusOr<ExprPtr> DictLiteral() {
    ExprPtr dict = New(ExprKind::kDict);
    while (!Take("}")) {
      ASSIGN_OR_RETURN(ExprPtr key, Expression());
      RETURN_IF_ERROR(Expect(":"));
      ASSIGN_OR_RETURN(ExprPtr value, Expression());
      dict->kids.push_back(std::move(key));
      dict->kids.push_back(std::move(value));
      if (!IsOperator("}")) RETURN_IF_ERROR(Expect(","));
    }
    return dict;
  }

  absl::Status Arguments(Expr* call) {
    RETURN_IF_ERROR(Expect("("));
    while (!Take(")")) {
      if (IsOperator("*") || IsOperator("**")) return Outside("unpacking arguments");
      const bool named = Now().kind == TokenKind::kName &&
                         tokens_[at_ + 1].kind == TokenKind::kOperator &&
                         tokens_[at_ + 1].text == "=";
      if (named) {
        std::string name = Now().text;
        at_ += 2;
        ASSIGN_OR_RETURN(ExprPtr value, Expression());
        call->named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call->named.empty()) return Error("an argument without a name behind one with a name");
        ASSIGN_OR_RETURN(ExprPtr value, Expression());
        call->kids.push_back(std::move(value));
      }
      if (!IsOperator(")")) RETURN_IF_ERROR(Expect(","));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExprPtr> Postfix(ExprPtr value) {
    while (true) {
      if (Take(".")) {
        ExprPtr e = New(ExprKind::kAttribute);
        ASSIGN_OR_RETURN(e->text, Identifier());
        e->kids.push_back(std::move(value));
        if (IsOperator("(")) {
          if (!IsMethod(e->text)) return Outside(absl::StrCat("the method \"", e->text, "\""));
          e->kind = ExprKind::kMethod;
          RETURN_IF_ERROR(Arguments(e.get()));
        }
        value = std::move(e);
      } else if (IsOperator("[")) {
        ASSIGN_OR_RETURN(value, Subscript(std::move(value)));
      } else if (IsOperator("(")) {
        return Outside("calling the result of an expression");
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExprPtr> Subscript(ExprPtr value) {
    ExprPtr e = New(ExprKind::kIndex);
    e->kids.push_back(std::move(value));
    ++at_;  // [
    ExprPtr parts[3];
    int part = 0;
    bool slice = false;
    while (!Take("]")) {
      if (Take(":")) {
        slice = true;
        if (++part > 2) return Error("a slice of more than three parts");
      } else {
        if (parts[part] != nullptr) return Error(absl::StrCat("expected \"]\", not ", Seen()));
        ASSIGN_OR_RETURN(parts[part], Expression());
      }
    }
    if (!slice && parts[0] == nullptr) return Error("expected an index");
    if (slice) e->kind = ExprKind::kSlice;
    for (int i = 0; i < (slice ? 3 : 1); ++i) e->kids.push_back(std::move(parts[i]));
    return e;
  }

  // Filters and tests behind a value.
  absl::StatusOr<ExprPtr> Filtered(ExprPtr value) {
    while (true) {
      if (Take("|")) {
        ExprPtr e = New(ExprKind::kFilter);
        ASSIGN_OR_RETURN(e->text, Identifier());
        if (!IsFilter(e->text)) return Outside(absl::StrCat("the filter \"", e->text, "\""));
        e->kids.push_back(std::move(value));
        if (IsOperator("(")) RETURN_IF_ERROR(Arguments(e.get()));
        value = std::move(e);
      } else if (IsName("is")) {
        ASSIGN_OR_RETURN(value, Test(std::move(value)));
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExprPtr> Test(ExprPtr value) {
    ++at_;  // is
    const bool negated = TakeName("not");
    ExprPtr e = New(ExprKind::kTest);
    ASSIGN_OR_RETURN(e->text, Identifier());
    if (!IsTest(e->text)) return Outside(absl::StrCat("the test \"", e->text, "\""));
    e->kids.push_back(std::move(value));
    if (IsOperator("(")) {
      RETURN_IF_ERROR(Arguments(e.get()));
    } else if (TestTakesArgument(e->text)) {
      ASSIGN_OR_RETURN(ExprPtr argument, Primary());
      ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
      e->kids.push_back(std::move(argument));
    }
    return negated ? Join(New(ExprKind::kNot), std::move(e)) : std::move(e);
  }

  const std::vector<Token> tokens_;  // the last one is kEnd
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<Node>> Parse(absl::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace oscarkv::jinja
