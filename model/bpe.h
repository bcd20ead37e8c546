// The vocabulary and the merges of a byte-level BPE, and their application to one word.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

inline constexpr int kMaxVocabulary = 1 << 22;  // ids are below it

// Immutable after parsing: thread-safe.
class Bpe {
 public:
  // Working memory of Encode, kept between words.
  struct Scratch {
    std::vector<int32_t> ids, previous, next;
    std::vector<uint64_t> heap;
  };

  // The "model" object of a tokenizer.json. kUnimplemented names what changes the result and is not
  // supported (another type, dropout, prefixes and suffixes of subwords, byte fallback);
  // kInvalidArgument for a broken vocabulary or merge list.
  static absl::StatusOr<std::unique_ptr<Bpe>> Parse(const nlohmann::json& model);

  // Appends the ids of a word's bytes. O(n log n).
  void Encode(absl::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

  // The id of a token as the vocabulary spells it, or -1.
  int32_t IdOfSpelling(absl::string_view spelling) const;
  // The bytes of each id; empty for ids that the vocabulary leaves out.
  const std::vector<std::string>& tokens() const { return tokens_; }
  bool Has(int32_t id) const;

 private:
  struct Merge {
    int32_t left, right, merged;
  };

  Bpe() = default;
  absl::Status ParseVocabulary(const nlohmann::json& vocabulary);
  absl::Status ParseMerges(const nlohmann::json& merges);
  int32_t IdOfBytes(absl::string_view bytes) const;
  // Queues the merge of the symbol at `position` with its successor, if there is one.
  void Queue(int32_t position, Scratch* scratch) const;

  std::vector<std::string> tokens_;
  absl::flat_hash_map<absl::string_view, int32_t> by_bytes_;    // views into tokens_
  absl::flat_hash_map<std::string, int32_t> outside_alphabet_;  // spelled with other characters
  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> merges_;                     // by rank
  absl::flat_hash_map<uint64_t, int32_t> ranks_;  // left << 32 | right -> rank
  bool ignore_merges_ = false;  // a word that is a token as a whole is not merged (Llama 3)
};

}  // namespace oscarkv
