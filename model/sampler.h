// Choosing the next token. Random numbers are a pure function of (seed, position), so that a
// sequence can move between workers.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace oscarkv {

struct SamplingParams {
  float temperature = 0;         // 0: greedy
  int top_k = 0;                 // 0: off
  float top_p = 1;               // (0, 1]
  float min_p = 0;               // [0, 1)
  float repetition_penalty = 1;  // > 0; 1: off; over all tokens of prompt and answer
  uint64_t seed = 0;
  int logprobs = 0;  // how many of the best tokens to report, 0..20
};

// kInvalidArgument names the field, its value and what is allowed.
absl::Status ValidateSampling(const SamplingParams& params);

struct TokenLogprob {
  int32_t token;
  float logprob;
};

struct SampledToken {
  int32_t token = -1;
  float logprob = 0;              // of the chosen token, in the unmodified distribution
  std::vector<TokenLogprob> top;  // params.logprobs best ones, descending
};

// logits: [vocab]; history: all tokens so far (for the repetition penalty); position: index of the
// token being chosen. Ties go to the smaller id. A NaN counts as minus infinity; where no token is
// left at all, token stays -1.
SampledToken Sample(absl::Span<const float> logits, const SamplingParams& params,
                    absl::Span<const int32_t> history, int position);

}  // namespace oscarkv
