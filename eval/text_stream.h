// Text files cut into token sequences, the same for the same files, options and seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace oscarkv {

inline constexpr uint64_t kMaxTextBytes = 64 << 20;

struct Text {
  std::string path, content;
};
// kNotFound / kInvalidArgument name the file and the reason.
absl::StatusOr<std::vector<Text>> ReadTexts(const std::vector<std::string>& paths);

struct PromptPlan {
  int tokens = 20480;        // in all, about; 0: all there are
  int prompt_tokens = 2048;  // of one prompt
  int needle_prompts = 0;    // of these, prompts with hidden numbers and a question
  uint64_t seed = 1;
};
// Consecutive pieces of the texts, chosen by the seed and evenly from all of them; then the needle
// prompts. kInvalidArgument when the texts are shorter than one prompt.
absl::StatusOr<std::vector<std::vector<int32_t>>> MakePrompts(const std::vector<Text>& texts,
                                                              const Tokenizer& tokenizer,
                                                              const PromptPlan& plan);

}  // namespace oscarkv
