// The parts of a tokenizer.json, parsed and checked.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"

namespace oscarkv {

struct TokenizerParts {
  std::unique_ptr<Bpe> bpe;
  std::unique_ptr<PreTokenizer> pretokenizer;
  std::vector<AddedToken> added;
  bool nfc = false;
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around a text
};

// kInvalidArgument for a broken file, kUnimplemented that names what changes the ids or the decoded
// text and is not supported. "truncation" and "padding" are settings of one training run and are
// ignored, as the usual loaders reset them.
absl::StatusOr<TokenizerParts> ParseTokenizerFile(absl::string_view tokenizer_json);

}  // namespace oscarkv
