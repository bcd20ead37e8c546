#include "kvstore/repair/scrubber.h"

#include <algorithm>

namespace oscarkv {
namespace {
constexpr Duration kBetweenPasses = std::chrono::seconds(1);
}  // namespace

Scrubber::Scrubber(KvNode* node, uint64_t bytes_per_second, Metric* scrubbed)
    : node_(node), rate_(bytes_per_second), scrubbed_(scrubbed), thread_([this] { Run(); }) {}

Scrubber::~Scrubber() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

bool Scrubber::PauseUntil(Time time) {
  MutexLock lock(mu_);
  while (!stop_ && SteadyClock::Get()->Now() < time && changed_.WaitUntil(mu_, time)) {
  }
  return !stop_;
}

void Scrubber::Run() {
  Time next = SteadyClock::Get()->Now();
  while (PauseUntil(next)) {
    for (const BlockIndex::Listed& block : node_->ListBlocks(Duration(0))) {
      if (!PauseUntil(next)) return;
      if (absl::IsNotFound(node_->CheckBlock(block.key, "scrub"))) continue;
      if (scrubbed_ != nullptr) scrubbed_->Add(block.size);
      next = std::max(next, SteadyClock::Get()->Now()) +
             Duration(static_cast<int64_t>(1e9 * static_cast<double>(block.size) /
                                           static_cast<double>(rate_)));
    }
    next = std::max(next, SteadyClock::Get()->Now() + kBetweenPasses);
  }
}

}  // namespace oscarkv
