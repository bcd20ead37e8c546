#include "model/bpe.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bounded_json.h"
#include "model/byte_alphabet.h"

// A word begins as one symbol per byte; again and again the adjacent pair of lowest rank (the
// leftmost of equals) becomes one symbol. The symbols are a linked list in arrays; a heap holds
// (rank, position of the left symbol) of every pair that may be merged. An entry is stale when the
// symbols at its position have changed since: a rank names one pair of ids, so comparing the ids
// shows it. Each merge removes a symbol and queues at most two pairs: O(n log n).

namespace oscarkv {
namespace {

using nlohmann::json;

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", what));
}

absl::Status RefuseOtherModels(const json& model) {
  const json* type = FindMember(model, "type");  // old files leave it out
  if (type != nullptr && *type != "BPE") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: model type ", JsonExcerpt(*type),
                                                 " is not supported; supported: BPE"));
  }
  const std::pair<const char*, json> off[] = {{"dropout", 0.0},
                                              {"continuing_subword_prefix", ""},
                                              {"end_of_word_suffix", ""},
                                              {"byte_fallback", false}};
  for (const auto& [key, value] : off) {
    const json* found = FindMember(model, key);
    if (found != nullptr && *found != value) {
      return absl::UnimplementedError(absl::StrCat("tokenizer.json: model.", key, " = ",
                                                   JsonExcerpt(*found), " is not supported"));
    }
  }
  // unk_token and fuse_unk do not matter: every byte has a token.
  return absl::OkStatus();
}

// "a b" or ["a", "b"].
bool SplitMerge(const json& merge, absl::string_view* left, absl::string_view* right) {
  if (merge.is_string()) {
    const absl::string_view text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == absl::string_view::npos || text.find(' ', space + 1) != absl::string_view::npos) {
      return false;
    }
    *left = text.substr(0, space);
    *right = text.substr(space + 1);
    return true;
  }
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
    return false;
  }
  *left = merge[0].get_ref<const std::string&>();
  *right = merge[1].get_ref<const std::string&>();
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bpe>> Bpe::Parse(const json& model) {
  if (!model.is_object()) return Bad("model is not an object");
  RETURN_IF_ERROR(RefuseOtherModels(model));
  const json* vocabulary = FindMember(model, "vocab");
  const json* merges = FindMember(model, "merges");
  if (vocabulary == nullptr || !vocabulary->is_object()) return Bad("model.vocab is not an object");
  if (merges == nullptr || !merges->is_array()) return Bad("model.merges is not a list");
  std::unique_ptr<Bpe> bpe(new Bpe);
  if (const json* ignore = FindMember(model, "ignore_merges"); ignore != nullptr) {
    if (!ignore->is_boolean()) return Bad("model.ignore_merges is not true or false");
    bpe->ignore_merges_ = ignore->get<bool>();
  }
  RETURN_IF_ERROR(bpe->ParseVocabulary(*vocabulary));
  RETURN_IF_ERROR(bpe->ParseMerges(*merges));
  return bpe;
}

absl::Status Bpe::ParseVocabulary(const json& vocabulary) {
  int64_t max_id = -1;
  for (const auto& [spelling, value] : vocabulary.items()) {
    int64_t id = 0;
    if (!JsonInteger(value, 0, kMaxVocabulary - 1, &id)) {
      return Bad(absl::StrCat("the id of token \"", spelling.substr(0, 100), "\" is ",
                              JsonExcerpt(value), ", expected an integer in 0..",
                              kMaxVocabulary - 1));
    }
    max_id = std::max(max_id, id);
  }
  tokens_.resize(max_id + 1);
  by_bytes_.reserve(vocabulary.size());
  for (const auto& [spelling, value] : vocabulary.items()) {
    const int32_t id = value.get<int32_t>();
    if (spelling.empty()) return Bad(absl::StrCat("token ", id, " is empty"));
    if (!tokens_[id].empty()) {
      return Bad(absl::StrCat("id ", id, " has two tokens, one of them \"", spelling.substr(0, 100),
                              "\""));
    }
    std::optional<std::string> bytes = BytesOfSpelling(spelling);
    if (bytes) {
      tokens_[id] = *std::move(bytes);
      by_bytes_.emplace(tokens_[id], id);
    } else {
      tokens_[id] = spelling;
      outside_alphabet_.emplace(spelling, id);
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = IdOfBytes(absl::string_view(&c, 1));
    if (byte_ids_[byte] < 0) {
      return Bad(absl::StrCat("byte 0x", absl::Hex(byte, absl::kZeroPad2),
                              " has no token: this is not a byte-level vocabulary"));
    }
  }
  return absl::OkStatus();
}

absl::Status Bpe::ParseMerges(const json& merges) {
  merges_.reserve(merges.size());
  ranks_.reserve(merges.size());
  for (const json& merge : merges) {
    absl::string_view left, right;
    if (!SplitMerge(merge, &left, &right)) {
      return Bad(absl::StrCat("merge ", merges_.size(), " is ", JsonExcerpt(merge),
                              ", expected \"a b\" or [\"a\", \"b\"]"));
    }
    const int32_t left_id = IdOfSpelling(left), right_id = IdOfSpelling(right);
    const int32_t merged_id = IdOfSpelling(absl::StrCat(left, right));
    if (left_id < 0 || right_id < 0 || merged_id < 0) {
      return Bad(absl::StrCat("merge ", merges_.size(), ", ", JsonExcerpt(merge),
                              ": the parts and the whole must be tokens"));
    }
    // Of equal merges the last counts, as in the original implementation.
    ranks_[PairKey(left_id, right_id)] = static_cast<int32_t>(merges_.size());
    merges_.push_back({left_id, right_id, merged_id});
  }
  return absl::OkStatus();
}

int32_t Bpe::IdOfBytes(absl::string_view bytes) const {
  const auto it = by_bytes_.find(bytes);
  return it == by_bytes_.end() ? -1 : it->second;
}

int32_t Bpe::IdOfSpelling(absl::string_view spelling) const {
  if (const std::optional<std::string> bytes = BytesOfSpelling(spelling)) return IdOfBytes(*bytes);
  const auto it = outside_alphabet_.find(spelling);
  return it == outside_alphabet_.end() ? -1 : it->second;
}

bool Bpe::Has(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() && !tokens_[id].empty();
}

void Bpe::Queue(int32_t position, Scratch* s) const {
  const int32_t after = s->next[position];
  if (after < 0) return;
  const auto it = ranks_.find(PairKey(s->ids[position], s->ids[after]));
  if (it == ranks_.end()) return;
  s->heap.push_back(PairKey(it->second, position));
  std::push_heap(s->heap.begin(), s->heap.end(), std::greater<>());
}

void Bpe::Encode(absl::string_view word, Scratch* s, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const int32_t id = IdOfBytes(word); id >= 0) {
      ids->push_back(id);
      return;
    }
  }
  const int32_t n = static_cast<int32_t>(word.size());
  s->ids.resize(n);
  s->previous.resize(n);
  s->next.resize(n);
  s->heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    s->ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
    s->previous[i] = i - 1;
    s->next[i] = i + 1 < n ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < n; ++i) Queue(i, s);

  while (!s->heap.empty()) {
    std::pop_heap(s->heap.begin(), s->heap.end(), std::greater<>());
    const uint64_t entry = s->heap.back();
    s->heap.pop_back();
    const Merge& merge = merges_[entry >> 32];
    const int32_t left = static_cast<int32_t>(entry & 0xffffffffu), right = s->next[left];
    if (s->ids[left] != merge.left || right < 0 || s->ids[right] != merge.right) continue;  // stale
    s->ids[left] = merge.merged;
    s->ids[right] = -1;  // dead
    s->next[left] = s->next[right];
    if (s->next[right] >= 0) s->previous[s->next[right]] = left;
    Queue(left, s);
    if (s->previous[left] >= 0) Queue(s->previous[left], s);
  }
  for (int32_t i = 0; i >= 0; i = s->next[i]) ids->push_back(s->ids[i]);
}

}  // namespace oscarkv
