// Two halves of the tokenizer. An input that begins with '{' is a tokenizer.json, which then
// encodes a fixed text; any other is a text for a fixed tokenizer, whose decoded ids must give the
// normalised text back.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/nfc.h"
#include "model/regex_splitter.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

namespace {

constexpr absl::string_view kText =
    "Hello, w\u00f6rld! It's 12345 <x> e\u0301 \u65e5\u672c\u8a9e\t\n\n  aaaa<y>  end";

void CheckStreaming(const oscarkv::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  oscarkv::StreamDecoder decoder(&tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    if (oscarkv::FindInvalidUtf8(piece) != absl::string_view::npos) std::abort();
    text += piece;
  }
  if (text + decoder.Finish() != tokenizer.Decode(ids)) std::abort();
}

void FuzzFile(absl::string_view json) {
  const auto tokenizer = oscarkv::Tokenizer::Parse(json);
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode(kText, /*add_special=*/true);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
  }
  CheckStreaming(**tokenizer, *ids);
}

void FuzzText(absl::string_view text) {
  static const oscarkv::Tokenizer& tokenizer =
      *oscarkv::Tokenizer::Load("models/reference").value().release();
  const auto ids = tokenizer.Encode(text);
  const bool valid = oscarkv::FindInvalidUtf8(text) == absl::string_view::npos;
  if (ids.ok() != valid) std::abort();
  if (!valid) return;
  CheckStreaming(tokenizer, *ids);
  // Added tokens are not normalised together with their neighbours; compare only where there are
  // none.
  if (text.find("<|") == absl::string_view::npos &&
      tokenizer.Decode(*ids, false) != *oscarkv::NormalizeNfc(text)) {
    std::abort();
  }
}

void FuzzPattern(absl::string_view pattern) {
  if (oscarkv::FindInvalidUtf8(pattern) != absl::string_view::npos) return;  // JSON has only UTF-8
  const auto splitter = oscarkv::RegexSplitter::Compile(pattern);
  if (!splitter.ok()) return;
  oscarkv::RegexSplitter::Scratch scratch;
  std::vector<absl::string_view> pieces;
  if (!(*splitter)->Split(kText, &scratch, &pieces).ok()) return;
  std::string joined;
  for (const absl::string_view piece : pieces) {
    if (piece.empty() || oscarkv::FindInvalidUtf8(piece) != absl::string_view::npos) std::abort();
    joined.append(piece.data(), piece.size());
  }
  if (joined != kText) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  if (size > 0 && input[0] == '{') {
    FuzzFile(input);
  } else if (size > 0 && input[0] == '/') {
    FuzzPattern(input.substr(1));
  } else {
    FuzzText(input);
  }
  return 0;
}
