// Cuts a text into the matches of a regular expression and what lies between them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

// Immutable after compiling: thread-safe.
class RegexSplitter {
 public:
  // Per-thread memory of Split, kept between calls.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class RegexSplitter;
    struct Data;
    std::unique_ptr<Data> data_;
  };

  // `pattern` in Oniguruma's syntax (regex_pattern.h). kInvalidArgument when it is not a regular
  // expression, kUnimplemented for constructs that PCRE2 would understand differently.
  static absl::StatusOr<std::unique_ptr<RegexSplitter>> Compile(absl::string_view pattern);
  ~RegexSplitter();

  // Appends the pieces, in order and without gaps; none is empty. `text` is UTF-8 and is matched on
  // its own: lookarounds do not see beyond it. kInvalidArgument when the expression exceeds its
  // match limits on this text.
  absl::Status Split(absl::string_view text, Scratch* scratch,
                     std::vector<absl::string_view>* pieces) const;

 private:
  struct Compiled;
  explicit RegexSplitter(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace oscarkv
