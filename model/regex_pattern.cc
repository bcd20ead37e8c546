#include "model/regex_pattern.h"

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace oscarkv {
namespace {

// White_Space and its complement, as members of a class. (PCRE2's own \s has U+180E besides.)
constexpr absl::string_view kSpace =
    "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
constexpr absl::string_view kNotSpace =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
constexpr absl::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
// Outside a class Oniguruma's \w has the Latin-1 superscripts and fractions besides; inside a class
// it has not.
constexpr absl::string_view kWordOutsideClass =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : rest_(pattern), pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    absl::Status status;
    while (status.ok() && !rest_.empty()) status = in_class_ ? ClassItem() : Item();
    if (!status.ok()) return status;
    return out_;  // what is still unbalanced, PCRE2 reports
  }

 private:
  absl::Status Refuse(absl::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("regular expression ", pattern_.substr(0, 300),
                                                 ": ", what, " is not supported"));
  }
  void Copy(size_t n) {
    absl::StrAppend(&out_, rest_.substr(0, n));
    rest_.remove_prefix(n < rest_.size() ? n : rest_.size());
  }

  absl::Status Item() {
    switch (rest_[0]) {
      case '\\':
        return Escape();
      case '(':
        return Group();
      case '[':
        in_class_ = true;
        Copy(absl::StartsWith(rest_, "[^") ? 2 : 1);
        if (absl::StartsWith(rest_, "]")) return Refuse("] at the beginning of a class");
        return absl::OkStatus();
      case '{':
        if (absl::StartsWith(rest_, "{,")) return Refuse("{,n}");
        break;
      case '}':
        // A greedy repeat of a repeat to Oniguruma, possessive to PCRE2.
        if (absl::StartsWith(rest_, "}+")) return Refuse("{n,m}+");
        break;
      default:
        break;
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status ClassItem() {
    if (rest_[0] == '\\') return Escape();
    if (rest_[0] == '[') return Refuse("[ within a class");
    if (absl::StartsWith(rest_, "&&")) return Refuse("&& within a class");
    if (rest_[0] == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    if (absl::StartsWith(rest_, "(*")) return Refuse("(*");
    if (!absl::StartsWith(rest_, "(?")) {
      Copy(1);
      return absl::OkStatus();
    }
    for (const absl::string_view known :
         {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i)", "(?i:", "(?-i)", "(?-i:"}) {
      if (absl::StartsWith(rest_, known)) {
        Copy(known.size());
        return absl::OkStatus();
      }
    }
    return Refuse(rest_.substr(0, 4));
  }

  // A class's members, within a class or as a class of their own.
  absl::Status Members(absl::string_view members) {
    rest_.remove_prefix(2);
    absl::StrAppend(&out_, in_class_ ? "" : "[", members, in_class_ ? "" : "]");
    return absl::OkStatus();
  }
  absl::Status Replace(size_t n, absl::string_view text) {
    rest_.remove_prefix(n);
    absl::StrAppend(&out_, text);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (rest_.size() < 2) return Refuse("a single \\ at the end");
    const char c = rest_[1];
    switch (c) {
      case 's':
        return Members(kSpace);
      case 'S':
        return Members(kNotSpace);
      case 'w':
        return Members(in_class_ ? kWord : kWordOutsideClass);
      case 'W':
        if (in_class_) return Refuse("\\W within a class");
        return Members(absl::StrCat("^", kWordOutsideClass));
      case 'd':
        return Replace(2, "\\p{Nd}");
      case 'D':
        return Replace(2, "\\P{Nd}");
      case 'v':
        return Replace(2, "\\x{b}");
      case 't':
      case 'n':
      case 'r':
      case 'f':
      case 'a':
      case 'e':
        Copy(2);
        return absl::OkStatus();
      case 'A':
      case 'z':
        if (in_class_) break;
        Copy(2);
        return absl::OkStatus();
      case 'p':
      case 'P':
        return Property();
      case 'x':
      case 'u':
        return CodePoint();
      default:
        if (absl::ascii_isalnum(static_cast<unsigned char>(c))) break;
        Copy(2);  // an escaped punctuation mark, or the first byte of a character
        return absl::OkStatus();
    }
    return Refuse(rest_.substr(0, 2));
  }

  // \p{..}: general categories as they are; longer names are scripts, which PCRE2 takes as script
  // *extensions* unless told.
  absl::Status Property() {
    const size_t close = rest_.find('}');
    if (rest_.size() < 4 || rest_[2] != '{' || close == absl::string_view::npos) {
      return Refuse("\\p without a name in braces");
    }
    absl::string_view name = rest_.substr(3, close - 3);
    const bool negated = absl::ConsumePrefix(&name, "^");
    for (const char c : name) {
      if (!absl::ascii_isalpha(static_cast<unsigned char>(c)) && c != '_') {
        return Refuse(rest_.substr(0, close + 1));
      }
    }
    const bool capital = rest_[1] == 'P';
    const absl::string_view prefix = name.size() > 2 && name != "Any" ? "sc:" : "";
    return Replace(close + 1,
                   absl::StrCat(negated != capital ? "\\P{" : "\\p{", prefix, name, "}"));
  }

  // \xHH, \x{H..}, \uHHHH.
  absl::Status CodePoint() {
    const bool braces = rest_.size() > 2 && rest_[2] == '{';
    if (braces && rest_[1] == 'u') return Refuse("\\u{");
    const size_t begin = braces ? 3 : 2;
    const size_t digits = braces ? rest_.find('}') : rest_[1] == 'x' ? 4 : 6;
    if (digits == absl::string_view::npos || digits > rest_.size() || digits <= begin) {
      return Refuse(absl::StrCat(rest_.substr(0, 2), " without its digits"));
    }
    const absl::string_view hex = rest_.substr(begin, digits - begin);
    for (const char c : hex) {
      if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) {
        return Refuse(rest_.substr(0, digits));
      }
    }
    // Beyond ASCII, \xHH is a byte to Oniguruma.
    if (!braces && rest_[1] == 'x' && hex[0] >= '8') return Refuse(rest_.substr(0, 4));
    return Replace(braces ? digits + 1 : digits, absl::StrCat("\\x{", hex, "}"));
  }

  absl::string_view rest_;
  const absl::string_view pattern_;
  std::string out_;
  bool in_class_ = false;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(absl::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace oscarkv
