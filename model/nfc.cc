#include "model/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/utf8.h"

// utf8proc's own NFC brings combining marks into order by exchanging neighbours, which takes
// quadratic time on a long run of marks: a prompt of some hundred thousand of them would hold a
// thread for minutes. So the steps are made one by one here, with a real sort: decompose each
// character, order each run of marks, compose.

namespace oscarkv {
namespace {

constexpr auto kForm = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
constexpr int kMaxDecomposition = 32;  // code points; the longest canonical one is 4

bool IsMark(int32_t code) {
  return utf8proc_get_property(code)->combining_class != 0;
}

absl::Status Failed(absl::string_view step, utf8proc_ssize_t code) {
  return absl::InternalError(absl::StrCat("NFC: ", step, ": ", utf8proc_errmsg(code)));
}

absl::Status AppendDecomposed(char32_t code, std::vector<int32_t>* out) {
  int32_t decomposed[kMaxDecomposition];
  int boundary = 0;
  const utf8proc_ssize_t n = utf8proc_decompose_char(static_cast<int32_t>(code), decomposed,
                                                     kMaxDecomposition, kForm, &boundary);
  if (n < 0) return Failed("decomposition", n);
  if (n > kMaxDecomposition) return absl::InternalError("NFC: decomposition too long");
  out->insert(out->end(), decomposed, decomposed + n);
  return absl::OkStatus();
}

void OrderMarks(std::vector<int32_t>* codes) {
  auto begin = codes->begin();
  while (begin != codes->end()) {
    begin = std::find_if(begin, codes->end(), IsMark);
    const auto end = std::find_if_not(begin, codes->end(), IsMark);
    if (end - begin > 1) {
      std::stable_sort(begin, end, [](int32_t a, int32_t b) {
        return utf8proc_get_property(a)->combining_class <
               utf8proc_get_property(b)->combining_class;
      });
    }
    begin = end;
  }
}

}  // namespace

absl::StatusOr<std::string> NormalizeNfc(absl::string_view text) {
  // Nothing below U+0300 combines or changes; those characters begin with a byte below 0xcc.
  if (std::all_of(text.begin(), text.end(),
                  [](char c) { return static_cast<uint8_t>(c) < 0xcc; })) {
    return std::string(text);
  }
  std::vector<int32_t> codes;
  codes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(i));
    if (const absl::Status s = AppendDecomposed(c.code, &codes); !s.ok()) return s;
    i += c.bytes;
  }
  OrderMarks(&codes);
  const utf8proc_ssize_t n =
      utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()), kForm);
  if (n < 0) return Failed("composition", n);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n; ++i) AppendUtf8(static_cast<char32_t>(codes[i]), &out);
  return out;
}

}  // namespace oscarkv
