// Byte-level BPE from a Hugging Face tokenizer.json (Qwen, Llama 3, GPT-2 style), and streaming
// detokenisation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

// Immutable after loading: thread-safe.
class Tokenizer {
 public:
  // Reads the folder's tokenizer.json. kInvalidArgument for a broken file, kUnimplemented that
  // names whatever would change ids or text and is not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view tokenizer_json);
  ~Tokenizer();

  // kInvalidArgument with the byte offset when `text` is not UTF-8, or when it is longer than 16
  // MiB. Added tokens in the text become their ids. No BOS is added unless the file's
  // post-processor says so and add_special is true.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special = false) const;
  // Ids outside the vocabulary are left out; what is not UTF-8 becomes U+FFFD.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special = true) const;
  // The raw bytes of one token; empty for a special token when skip_special.
  std::string TokenBytes(int32_t id, bool skip_special = true) const;
  // The largest id and one.
  int vocab_size() const;
  // The id of an added token, or of a plain one as the file spells it ("Ġthe" for " the"), or
  // -1.
  int32_t TokenId(absl::string_view token) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of tokens into a stream of text that never splits a UTF-8 character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  // The text that became complete with this token.
  std::string Push(int32_t id);
  // What is left (an incomplete character becomes U+FFFD).
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace oscarkv
