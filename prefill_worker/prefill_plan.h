// Which blocks of a prompt are fetched, which computed, and which slots that takes. Pure functions.
#pragma once

#include "model/kv_pool.h"

namespace oscarkv {

// What to do with a prefix whose pages are stored but whose bf16 window is not.
enum class WindowMiss {
  kRecompute,  // compute the last 256 tokens of the match again, over the stored pages
  kAll,  // compute the whole prompt again: its KV is then the same as without a cache, to the bit
};

// First block behind the sink that a computation starting at block `block` wants in bf16.
inline int WindowBegin(int block) {
  return FirstWindowBlock(block * kBlockTokens);
}

// The position from which a prompt of `tokens` tokens is computed when its first `matched` blocks
// were fetched. `window`: the bf16 copies of the blocks [WindowBegin(matched), matched) were, too
// (always true for uncoded blocks). At least the last token is computed: its logits are the answer.
inline int StartPosition(int tokens, int matched, bool window, WindowMiss on_miss) {
  if (window) return std::min(matched * kBlockTokens, tokens - 1);
  return on_miss == WindowMiss::kAll ? 0 : WindowBegin(matched) * kBlockTokens;
}

// The slots of a prompt of which `matched` blocks come from the store: every block from
// `first_bf16` on and the sink has a bf16 slot, every full block behind the sink a page (if coded).
struct SlotPlan {
  int first_bf16 = 0;
  int num_blocks = 0;
  int num_pages = 0;  // pages are those of blocks [1, 1 + num_pages)

  int bf16_slots() const { return num_blocks - first_bf16 + (first_bf16 > 0 ? 1 : 0); }
};
inline SlotPlan PlanSlots(int tokens, int matched, bool coded) {
  SlotPlan plan;
  plan.num_blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  plan.num_pages = coded ? std::max(0, tokens / kBlockTokens - kSinkBlocks) : 0;
  plan.first_bf16 = coded && matched > 0 ? WindowBegin(matched) : 0;
  return plan;
}

// Takes the slots of `plan` that `kv` does not have yet. False: the pool is full; `kv` keeps what
// it got.
inline bool TakeSlots(const SlotPlan& plan, SequenceKv* kv) {
  if (plan.num_blocks > 0 && !kv->EnsureBlock(0)) return false;
  for (int b = std::max(1, plan.first_bf16); b < plan.num_blocks; ++b) {
    if (!kv->EnsureBlock(b)) return false;
  }
  for (int b = kSinkBlocks; b < kSinkBlocks + plan.num_pages; ++b) {
    if (!kv->EnsurePage(b)) return false;
  }
  return true;
}

}  // namespace oscarkv
