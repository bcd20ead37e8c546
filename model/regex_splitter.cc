#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/regex_splitter.h"

#include <pcre2.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/regex_pattern.h"
#include "model/utf8.h"

namespace oscarkv {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr uint32_t kMaxGroupDepth = 64;
// Backtracking steps of one match. Tokenizers' expressions need at most a few per character of the
// text.
constexpr uint32_t kMatchLimit = uint32_t{1} << 25;
constexpr uint32_t kHeapLimitKib = uint32_t{256} << 10;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof buffer) < 0) return absl::StrCat("error ", code);
  return reinterpret_cast<const char*>(buffer);
}

struct CompileContext {
  pcre2_compile_context* p = pcre2_compile_context_create(nullptr);
  ~CompileContext() { pcre2_compile_context_free(p); }
};

}  // namespace

struct RegexSplitter::Compiled {
  pcre2_code* code = nullptr;
  pcre2_match_context* limits = nullptr;
  ~Compiled() {
    pcre2_code_free(code);
    pcre2_match_context_free(limits);
  }
};

struct RegexSplitter::Scratch::Data {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);  // the whole match's offsets only
  ~Data() { pcre2_match_data_free(match); }
};

RegexSplitter::Scratch::Scratch() : data_(std::make_unique<Data>()) {}
RegexSplitter::Scratch::~Scratch() = default;
RegexSplitter::RegexSplitter(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
RegexSplitter::~RegexSplitter() = default;

absl::StatusOr<std::unique_ptr<RegexSplitter>> RegexSplitter::Compile(absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat("regular expression of ", pattern.size(),
                                                   " bytes, the limit is ", kMaxPatternBytes));
  }
  ASSIGN_OR_RETURN(const std::string translated, TranslatePattern(pattern));
  CompileContext context;
  auto compiled = std::make_unique<Compiled>();
  compiled->limits = pcre2_match_context_create(nullptr);
  if (context.p == nullptr || compiled->limits == nullptr) {
    return absl::ResourceExhaustedError("regular expression: out of memory");
  }
  pcre2_set_parens_nest_limit(context.p, kMaxGroupDepth);
  pcre2_set_newline(context.p, PCRE2_NEWLINE_LF);
  pcre2_set_match_limit(compiled->limits, kMatchLimit);
  pcre2_set_depth_limit(compiled->limits, kMatchLimit);
  pcre2_set_heap_limit(compiled->limits, kHeapLimitKib);
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                 &error, &offset, context.p);
  if (compiled->code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("regular expression ", pattern.substr(0, 300),
                                                   ": ", ErrorText(error), " at offset ", offset,
                                                   " of ", translated.substr(0, 1000)));
  }
  // Where memory cannot be made executable this fails, and the interpreter runs instead.
  (void)pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);
  return std::unique_ptr<RegexSplitter>(new RegexSplitter(std::move(compiled)));
}

absl::Status RegexSplitter::Split(absl::string_view text, Scratch* scratch,
                                  std::vector<absl::string_view>* pieces) const {
  pcre2_match_data* match = scratch->data_->match;
  if (match == nullptr) return absl::ResourceExhaustedError("regular expression: out of memory");
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0;    // everything before is in a piece
  size_t search = 0;  // where the next match may begin
  const auto cut = [&](size_t end) {
    if (end > done) pieces->push_back(text.substr(done, end - done));
    done = end;
  };
  while (search < text.size()) {
    int rc = pcre2_match(compiled_->code, subject, text.size(), search, PCRE2_NO_UTF_CHECK, match,
                         compiled_->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {  // deep backtracking: the interpreter uses the heap
      rc = pcre2_match(compiled_->code, subject, text.size(), search,
                       PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, compiled_->limits);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tokenizer's regular expression fails at byte ", search,
                       " of a text of ", text.size(), " bytes: ", ErrorText(rc)));
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match);
    const size_t begin = offsets[0], end = offsets[1];
    cut(begin);
    cut(end);
    // An empty match separates, and the search goes on behind the next character.
    search = end > begin          ? end
             : end == text.size() ? end
                                  : end + DecodeUtf8(text.substr(end)).bytes;
  }
  cut(text.size());
  return absl::OkStatus();
}

}  // namespace oscarkv
