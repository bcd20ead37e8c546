// One sequence in this process, without servers: its memory, and its prefill in chunks.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/model_runner.h"

namespace oscarkv {

// Slots for a sequence of up to `tokens` tokens. One thread.
class LocalSequence {
 public:
  LocalSequence(const ModelRunner& runner, int tokens);

  SequenceKv& kv() { return *kv_; }
  // Slots for positions [start, end): bf16 for each block, a page for those that fill up.
  // kResourceExhausted beyond `tokens`.
  absl::Status EnsureSlots(int start, int end);
  // Prefills tokens at [start, start + size) with the given wishes of `chunk` (its tokens, start
  // and kv are set here).
  absl::StatusOr<PrefillOutput> Prefill(ModelRunner& runner, absl::Span<const int32_t> tokens,
                                        int start, PrefillChunk chunk);

 private:
  const bool pages_;
  std::unique_ptr<uint8_t, decltype(&std::free)> memory_{nullptr, &std::free};
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<SequenceKv> kv_;
};

}  // namespace oscarkv
