// A parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace oscarkv::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kLiteral,
  kName,       // text
  kList,       // kids; tuples too
  kDict,       // kids: key, value, key, value, ...
  kAttribute,  // kids[0].text
  kIndex,      // kids[0][kids[1]]
  kSlice,      // kids[0][kids[1]:kids[2]:kids[3]], each of the last three may be null
  kCall,       // text(kids..., named...): a function
  kMethod,     // kids[0].text(kids[1]..., named...)
  kFilter,     // kids[0] | text(kids[1]..., named...)
  kTest,       // kids[0] is text(kids[1]...)
  kNegative,   // -kids[0]
  kNot,
  kAnd,
  kOr,
  kBinary,     // kids[0] text kids[1]: arithmetic, comparison, "in"
  kCondition,  // kids[0] if kids[1] else kids[2], which may be null
};

struct Expr {
  ExprKind kind = ExprKind::kLiteral;
  int line = 0;
  std::string text;
  Value literal;
  std::vector<ExprPtr> kids;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

enum class NodeKind {
  kText,    // text
  kOutput,  // {{ expr }}
  kIf,      // expr, body, otherwise (elif: an If alone in it)
  kFor,     // targets in expr if condition: body, otherwise
  kSet,  // targets = expr, or {% set x %}body{% endset %} without expr; text: a namespace's member
};

struct Node {
  NodeKind kind = NodeKind::kText;
  int line = 0;
  std::string text;
  std::vector<std::string> targets;
  ExprPtr expr, condition;
  std::vector<Node> body, otherwise;
};

}  // namespace oscarkv::jinja
