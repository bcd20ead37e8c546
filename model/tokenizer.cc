#include "model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/added_tokens.h"
#include "model/bounded_json.h"
#include "model/bpe.h"
#include "model/nfc.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_file.h"
#include "model/utf8.h"

// A text passes: added tokens looked for in the raw text; between them normalisation; added tokens
// looked for in the normalised text; between them words by the pre-tokenizer; for each word BPE.

namespace oscarkv {
namespace {

constexpr size_t kMaxFileBytes = size_t{128} << 20;
constexpr size_t kMaxTextBytes = size_t{16} << 20;

struct TokenEntry {
  std::string bytes;
  bool special = false;
};

struct Scratch {
  std::vector<AddedTokenMatcher::Part> raw, normalized;
  PreTokenizer::Scratch words;
  Bpe::Scratch bpe;
};

}  // namespace

struct Tokenizer::Impl {
  std::unique_ptr<Bpe> bpe;
  std::unique_ptr<PreTokenizer> pretokenizer;
  bool nfc = false;
  AddedTokenMatcher raw_added, normalized_added;
  absl::flat_hash_map<std::string, int32_t> added_ids;
  std::vector<TokenEntry> tokens;  // by id; empty bytes: no such token
  std::vector<int32_t> prefix, suffix;

  static absl::StatusOr<std::unique_ptr<Impl>> Make(TokenizerParts parts);
  absl::StatusOr<std::string> Normalize(absl::string_view text) const {
    return nfc ? NormalizeNfc(text) : std::string(text);
  }
  // Text without raw added tokens.
  absl::Status EncodePlain(absl::string_view text, Scratch* scratch,
                           std::vector<int32_t>* ids) const;
};

absl::StatusOr<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::Make(TokenizerParts parts) {
  auto impl = std::make_unique<Impl>();
  impl->nfc = parts.nfc;
  impl->prefix = std::move(parts.prefix);
  impl->suffix = std::move(parts.suffix);
  size_t size = parts.bpe->tokens().size();
  for (const AddedToken& token : parts.added) size = std::max(size, size_t(token.id) + 1);
  impl->tokens.resize(size);
  for (size_t i = 0; i < parts.bpe->tokens().size(); ++i) {
    impl->tokens[i].bytes = parts.bpe->tokens()[i];
  }
  for (const AddedToken& token : parts.added) {
    impl->tokens[token.id] = {token.content, token.special};
    impl->added_ids.emplace(token.content, token.id);
    if (!token.normalized) {
      impl->raw_added.Add(token.content, token);
      continue;
    }
    ASSIGN_OR_RETURN(const std::string pattern, impl->Normalize(token.content));
    impl->normalized_added.Add(pattern, token);
  }
  impl->bpe = std::move(parts.bpe);
  impl->pretokenizer = std::move(parts.pretokenizer);
  return impl;
}

absl::Status Tokenizer::Impl::EncodePlain(absl::string_view text, Scratch* scratch,
                                          std::vector<int32_t>* ids) const {
  ASSIGN_OR_RETURN(const std::string normal, Normalize(text));
  scratch->normalized.clear();
  normalized_added.Split(normal, &scratch->normalized);
  for (const AddedTokenMatcher::Part& part : scratch->normalized) {
    if (part.id >= 0) {
      ids->push_back(part.id);
      continue;
    }
    RETURN_IF_ERROR(pretokenizer->Split(part.text, &scratch->words));
    for (const absl::string_view word : scratch->words.words) {
      bpe->Encode(word, &scratch->bpe, ids);
    }
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/tokenizer.json");
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxFileBytes));
  absl::StatusOr<std::unique_ptr<Tokenizer>> parsed = Parse(text);
  if (parsed.ok()) return parsed;
  return absl::Status(parsed.status().code(),
                      absl::StrCat(model_dir, ": ", parsed.status().message()));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view tokenizer_json) {
  ASSIGN_OR_RETURN(TokenizerParts parts, ParseTokenizerFile(tokenizer_json));
  ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, Impl::Make(std::move(parts)));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       bool add_special) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text of ", text.size(), " bytes, the limit is ", kMaxTextBytes));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("the text is not UTF-8 at byte ", bad));
  }
  Scratch scratch;
  std::vector<int32_t> ids;
  if (add_special) ids = impl_->prefix;
  impl_->raw_added.Split(text, &scratch.raw);
  for (const AddedTokenMatcher::Part& part : scratch.raw) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      RETURN_IF_ERROR(impl_->EncodePlain(part.text, &scratch, &ids));
    }
  }
  if (add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::TokenBytes(int32_t id, bool skip_special) const {
  if (id < 0 || static_cast<size_t>(id) >= impl_->tokens.size()) return "";
  const TokenEntry& token = impl_->tokens[id];
  return skip_special && token.special ? "" : token.bytes;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += TokenBytes(id, skip_special);
  return ReplaceInvalidUtf8(bytes);
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->tokens.size());
}

int32_t Tokenizer::TokenId(absl::string_view token) const {
  const auto it = impl_->added_ids.find(token);
  return it != impl_->added_ids.end() ? it->second : impl_->bpe->IdOfSpelling(token);
}

std::string StreamDecoder::Push(int32_t id) {
  pending_ += tokenizer_->TokenBytes(id);
  const size_t complete = pending_.size() - TruncatedUtf8Tail(pending_);
  std::string text = ReplaceInvalidUtf8(absl::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace oscarkv
