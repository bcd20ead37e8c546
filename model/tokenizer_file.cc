#include "model/tokenizer_file.h"

#include <algorithm>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr JsonLimits kLimits{.max_bytes = size_t{128} << 20, .max_depth = 32};
constexpr size_t kMaxTemplate = 64;

absl::Status Unsupported(absl::string_view what, const json& value) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.json: ", what, " ", JsonExcerpt(value), " is not supported"));
}

bool HasType(const json& object, const char* type) {
  const json* found = FindMember(object, "type");
  return found != nullptr && *found == type;
}

// The steps of a Sequence whose list is called `list`, or the object itself; nothing for null.
std::vector<const json*> Steps(const json* object, const char* list) {
  if (object == nullptr) return {};
  const json* steps = HasType(*object, "Sequence") ? FindMember(*object, list) : nullptr;
  if (steps == nullptr || !steps->is_array()) return {object};
  std::vector<const json*> out;
  for (const json& step : *steps) out.push_back(&step);
  return out;
}

absl::StatusOr<bool> ParseNormalizer(const json& file) {
  bool nfc = false;
  for (const json* step : Steps(FindMember(file, "normalizer"), "normalizers")) {
    if (!HasType(*step, "NFC")) return Unsupported("normalizer", *step);
    nfc = true;
  }
  return nfc;
}

absl::Status CheckDecoder(const json& file) {
  const json* decoder = FindMember(file, "decoder");
  if (decoder == nullptr) return Unsupported("decoder", nullptr);
  const std::vector<const json*> steps = Steps(decoder, "decoders");
  if (steps.size() != 1 || !HasType(*steps[0], "ByteLevel"))
    return Unsupported("decoder", *decoder);
  return absl::OkStatus();
}

// The ids of a template's special token.
absl::Status AppendSpecial(const json& processor, const std::string& name, int32_t vocab_size,
                           std::vector<int32_t>* out) {
  const json* specials = FindMember(processor, "special_tokens");
  const json* special = specials == nullptr ? nullptr : FindMember(*specials, name);
  const json* ids = special == nullptr ? nullptr : FindMember(*special, "ids");
  if (ids == nullptr || !ids->is_array() || ids->size() > kMaxTemplate) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.json: post_processor: special token \"", name, "\" has no list of ids"));
  }
  for (const json& id : *ids) {
    int64_t number = 0;
    if (!JsonInteger(id, 0, vocab_size - 1, &number)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: post_processor: special token \"", name, "\" has id ",
                       JsonExcerpt(id), ", expected 0..", vocab_size - 1));
    }
    out->push_back(static_cast<int32_t>(number));
  }
  return absl::OkStatus();
}

// "single": special tokens around {"Sequence": {"id": "A"}}.
absl::Status ParseTemplate(const json& processor, int32_t vocab_size, TokenizerParts* parts) {
  const json* single = FindMember(processor, "single");
  if (single == nullptr || !single->is_array() || single->size() > kMaxTemplate) {
    return Unsupported("post_processor", processor);
  }
  bool text_seen = false;
  for (const json& piece : *single) {
    const json* special = FindMember(piece, "SpecialToken");
    const json* sequence = FindMember(piece, "Sequence");
    const json* id = FindMember(special != nullptr    ? *special
                                : sequence != nullptr ? *sequence
                                                      : piece,
                                "id");
    if (id == nullptr || !id->is_string() || piece.size() != 1) {
      return Unsupported("post_processor", piece);
    }
    if (special != nullptr) {
      RETURN_IF_ERROR(AppendSpecial(processor, id->get<std::string>(), vocab_size,
                                    text_seen ? &parts->suffix : &parts->prefix));
    } else if (*id != "A" || text_seen) {
      return Unsupported("post_processor", piece);
    } else {
      text_seen = true;
    }
  }
  return text_seen ? absl::OkStatus() : Unsupported("post_processor", *single);
}

absl::Status ParsePostProcessor(const json& file, int32_t vocab_size, TokenizerParts* parts) {
  bool templated = false;
  for (const json* step : Steps(FindMember(file, "post_processor"), "processors")) {
    if (HasType(*step, "ByteLevel")) continue;  // concerns offsets only
    if (!HasType(*step, "TemplateProcessing") || templated) {
      return Unsupported("post_processor", *step);
    }
    templated = true;
    RETURN_IF_ERROR(ParseTemplate(*step, vocab_size, parts));
  }
  return absl::OkStatus();
}

// An added token that is in the vocabulary too has the same id there; no two tokens share an id.
absl::Status CheckAdded(const TokenizerParts& parts) {
  absl::flat_hash_map<absl::string_view, int32_t> contents;
  absl::flat_hash_set<int32_t> ids;
  for (const AddedToken& token : parts.added) {
    const int32_t in_vocabulary = parts.bpe->IdOfSpelling(token.content);
    if ((in_vocabulary >= 0 && in_vocabulary != token.id) ||
        (in_vocabulary < 0 && parts.bpe->Has(token.id))) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token \"",
                                                     token.content, "\" with id ", token.id,
                                                     " contradicts the vocabulary"));
    }
    if (!contents.emplace(token.content, token.id).second || !ids.insert(token.id).second) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token \"",
                                                     token.content, "\", id ", token.id,
                                                     ": content or id given twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerParts> ParseTokenizerFile(absl::string_view tokenizer_json) {
  ASSIGN_OR_RETURN(const json file, ParseBoundedJson(tokenizer_json, "tokenizer.json", kLimits));
  if (!file.is_object()) return absl::InvalidArgumentError("tokenizer.json: not an object");
  const json* model = FindMember(file, "model");
  if (model == nullptr) return absl::InvalidArgumentError("tokenizer.json: no model");
  TokenizerParts parts;
  // Cheap parts first, so that an unsupported file is refused at once.
  ASSIGN_OR_RETURN(parts.nfc, ParseNormalizer(file));
  ASSIGN_OR_RETURN(parts.pretokenizer, PreTokenizer::Parse(file));
  RETURN_IF_ERROR(CheckDecoder(file));
  ASSIGN_OR_RETURN(parts.added, ParseAddedTokens(file));
  ASSIGN_OR_RETURN(parts.bpe, Bpe::Parse(*model));
  RETURN_IF_ERROR(CheckAdded(parts));
  int32_t vocab_size = static_cast<int32_t>(parts.bpe->tokens().size());
  for (const AddedToken& token : parts.added) vocab_size = std::max(vocab_size, token.id + 1);
  RETURN_IF_ERROR(ParsePostProcessor(file, vocab_size, &parts));
  return parts;
}

}  // namespace oscarkv
