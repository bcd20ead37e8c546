#include "kvstore/repair/hot.h"

#include <algorithm>
#include <cmath>

namespace oscarkv {
namespace {

// Of `reads`: below this a copy is too much whatever the number of holders, so slower reads need
// not be known.
constexpr double kQuiet = 0.25;

double SecondsOf(Duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

uint32_t HotPlan::ReportAt(const HotOptions& options) {
  if (options.copies == 0) return 0;
  return static_cast<uint32_t>(
      std::max(1.0, std::floor(kQuiet * options.reads * SecondsOf(options.window))));
}

std::vector<HotPlan::Step> HotPlan::EndWindow(absl::Span<const BlockIndex::Hot> hot,
                                              Duration length, size_t replicas, uint32_t most,
                                              Time now) {
  const double seconds = std::max(SecondsOf(length), 1e-3);
  most = std::min(most, options_.copies);
  for (auto& [key, state] : states_) state.rate /= 2;
  for (const BlockIndex::Hot& block : hot) {
    const double rate = block.reads / seconds;
    const auto it = states_.find(block.key);
    if (it != states_.end()) {
      it->second.rate += rate / 2;
    } else if (states_.size() < BlockIndex::kMostHot) {
      states_[block.key] = {.block = block, .rate = rate};
    }
  }
  std::vector<std::pair<double, Step>> due;
  for (auto it = states_.begin(); it != states_.end();) {
    State& s = it->second;
    const double holders = static_cast<double>(replicas + s.copies);
    if (s.rate >= options_.reads && s.copies < most && now >= s.raise_from) {
      due.push_back({s.rate, {s.block, s.copies + 1}});
    } else if (s.copies > 0 && now >= s.renew_at) {
      const bool enough_without = s.rate * holders / (holders - 1) < options_.reads / 2;
      due.push_back({s.rate, {s.block, std::min(s.copies - enough_without, most)}});
    } else if (s.copies == 0 && s.rate < kQuiet * options_.reads) {
      states_.erase(it++);
      continue;
    }
    ++it;
  }
  // Of equally many reads the smaller key, for the same order in every run.
  std::sort(due.begin(), due.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second.block.key.key < b.second.block.key.key;
  });
  std::vector<Step> steps;
  steps.reserve(due.size());
  for (auto& [rate, step] : due) steps.push_back(std::move(step));
  return steps;
}

void HotPlan::Made(const Step& step, uint32_t copies, Time now) {
  const auto it = states_.find(step.block.key);
  if (it == states_.end()) return;
  it->second.copies = copies;
  it->second.renew_at = now + options_.ttl / 2;
  if (copies < step.copies) it->second.raise_from = now + options_.ttl / 2;
}

size_t HotPlan::blocks_with_copies() const {
  return std::count_if(states_.begin(), states_.end(),
                       [](const auto& entry) { return entry.second.copies > 0; });
}

}  // namespace oscarkv
