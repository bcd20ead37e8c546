#include "model/jinja/lexer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"

namespace oscarkv::jinja {
namespace {

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(TextAndTag());
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", what));
  }
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  bool Sees(absl::string_view what) const {
    return source_.compare(at_, what.size(), what.data(), what.size()) == 0;
  }
  void Skip(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
  }
  void SkipSpace() {
    while (at_ < source_.size() && absl::ascii_isspace(static_cast<unsigned char>(source_[at_]))) {
      Skip(1);
    }
  }

  // Text up to the next tag, and the tag.
  absl::Status TextAndTag() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) break;
      const char c = source_[tag + 1];
      if (c == '{' || c == '%' || c == '#') break;
      ++tag;
    }
    if (tag == std::string::npos || tag + 1 >= source_.size()) {
      Add(TokenKind::kText, source_.substr(at_));
      Skip(source_.size() - at_);
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    std::string text = source_.substr(at_, tag - at_);
    if (sign == '-') {
      text.erase(text.find_last_not_of(" \t\n\r\f\v") + 1);
    } else if (kind != '{' && sign != '+') {
      // lstrip_blocks: a tag that is the first thing on its line takes the blanks before it.
      const size_t line = text.rfind('\n') + 1;
      const bool at_line_start = line > 0 || at_ == 0 || source_[at_ - 1] == '\n';
      if (at_line_start && text.find_first_not_of(" \t\r\f\v", line) == std::string::npos) {
        text.erase(line);
      }
    }
    if (!text.empty()) Add(TokenKind::kText, std::move(text));
    Skip(tag - at_ + 2 + (sign == '-' || (sign == '+' && kind != '{') ? 1 : 0));
    if (kind == '#') return Comment();
    return Inside(kind == '{');
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return Error("a comment {# without #}");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    Skip(end + 2 - at_);
    AfterTag(sign, /*output=*/false);
    return absl::OkStatus();
  }

  void AfterTag(char sign, bool output) {
    if (sign == '-') {
      SkipSpace();
    } else if (!output && sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      Skip(1);  // trim_blocks
    }
  }

  // {{ ... }} or {% ... %}
  absl::Status Inside(bool output) {
    const absl::string_view end = output ? "}}" : "%}";
    Add(output ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, "");
    const int begun = line_;
    std::string open;  // brackets
    while (true) {
      SkipSpace();
      if (at_ >= source_.size()) {
        line_ = begun;
        return Error(absl::StrCat("a tag without its end ", end));
      }
      if (open.empty()) {
        const char c = source_[at_];
        const bool sign =
            (c == '-' || (c == '+' && !output)) && source_.compare(at_ + 1, 2, end.data(), 2) == 0;
        if (sign || Sees(end)) {
          Add(output ? TokenKind::kOutputEnd : TokenKind::kBlockEnd, "");
          Skip(sign ? 3 : 2);
          AfterTag(sign ? c : '\0', output);
          return absl::OkStatus();
        }
      }
      RETURN_IF_ERROR(One(&open));
    }
  }

  absl::Status One(std::string* open) {
    const char c = source_[at_];
    if (absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_') return Name();
    if (absl::ascii_isdigit(static_cast<unsigned char>(c))) return Number();
    if (c == '\'' || c == '"') return String();
    for (absl::string_view op : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!Sees(op)) continue;
      Add(TokenKind::kOperator, std::string(op));
      Skip(op.size());
      return absl::OkStatus();
    }
    if (absl::string_view("+-*/%~<>=.,:|()[]{}").find(c) == absl::string_view::npos) {
      return Error(
          absl::StrCat("the character '", std::string(1, c), "' is not expected in a tag"));
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      const char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open->empty() || open->back() != expected) {
        return Error(absl::StrCat("a '", std::string(1, c), "' without its beginning"));
      }
      open->pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    Skip(1);
    return absl::OkStatus();
  }

  absl::Status Name() {
    size_t end = at_;
    while (end < source_.size() &&
           (absl::ascii_isalnum(static_cast<unsigned char>(source_[end])) || source_[end] == '_')) {
      ++end;
    }
    Add(TokenKind::kName, source_.substr(at_, end - at_));
    Skip(end - at_);
    return absl::OkStatus();
  }

  absl::Status Number() {
    const auto digits = [this](size_t from) {
      while (from < source_.size() &&
             absl::ascii_isdigit(static_cast<unsigned char>(source_[from]))) {
        ++from;
      }
      return from;
    };
    size_t end = digits(at_);
    TokenKind kind = TokenKind::kInteger;
    if (end < source_.size() && source_[end] == '.' && digits(end + 1) > end + 1) {
      kind = TokenKind::kFloat;
      end = digits(end + 1);
    }
    if (end < source_.size() && (source_[end] | 32) == 'e') {
      const size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '-' || source_[end + 1] == '+');
      if (digits(end + 1 + sign) > end + 1 + sign) {
        kind = TokenKind::kFloat;
        end = digits(end + 1 + sign);
      }
    }
    Add(kind, source_.substr(at_, end - at_));
    Skip(end - at_);
    return absl::OkStatus();
  }

  absl::Status String() {
    const char quote = source_[at_];
    std::string text;
    size_t at = at_ + 1;
    for (; at < source_.size() && source_[at] != quote; ++at) {
      if (source_[at] != '\\') {
        text.push_back(source_[at]);
        continue;
      }
      if (++at >= source_.size()) break;
      RETURN_IF_ERROR(Escape(&at, &text));
    }
    if (at >= source_.size()) return Error("a text without its closing quote");
    Add(TokenKind::kString, std::move(text));
    Skip(at + 1 - at_);
    return absl::OkStatus();
  }

  // source_[*at] follows a backslash; ends at the escape's last character. As Python's.
  absl::Status Escape(size_t* at, std::string* text) {
    const char c = source_[*at];
    static constexpr absl::string_view kFrom = "ntr\\'\"abfv0\n", kTo("\n\t\r\\'\"\a\b\f\v\0", 11);
    const size_t simple = kFrom.find(c);
    if (simple < kTo.size()) {
      text->push_back(kTo[simple]);
      return absl::OkStatus();
    }
    if (c == '\n') return absl::OkStatus();
    if (c != 'x' && c != 'u') {
      text->push_back('\\');  // stays, as in Python
      text->push_back(c);
      return absl::OkStatus();
    }
    const size_t n = c == 'x' ? 2 : 4;
    uint32_t value = 0;
    for (size_t i = 1; i <= n; ++i) {
      const auto digit =
          static_cast<unsigned char>(*at + i < source_.size() ? source_[*at + i] : ' ');
      if (!absl::ascii_isxdigit(digit)) {
        return Error(absl::StrCat("\\", std::string(1, c), " without ", n, " hexadecimal digits"));
      }
      value =
          value * 16 + static_cast<uint32_t>(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10);
    }
    if (value >= 0xD800 && value < 0xE000) return Error("half of a surrogate pair in a text");
    AppendUtf8(value, text);
    *at += n;
    return absl::OkStatus();
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(absl::string_view source) {
  std::string text = absl::StrReplaceAll(source, {{"\r\n", "\n"}, {"\r", "\n"}});
  if (!text.empty() && text.back() == '\n') text.pop_back();  // Jinja keeps no last one
  return Lexer(std::move(text)).Run();
}

}  // namespace oscarkv::jinja
