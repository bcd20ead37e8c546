// Fetch or compute: whether the stored part of a prompt is fetched, decided by what recent fetches
// and recent chunks took, and how long a fetch under way may take before the rest is computed.
//
// A fetch costs the same per block; computing a token costs more the further back it attends. So if
// it pays to fetch some of a prefix it pays to fetch all of it, and the decision is all or nothing;
// a part of a prefix comes to be used when a get takes too long. With m the margin and w the least
// wait of the options:
//   nothing is fetched when fetching F is expected to take longer than computing C by the margin:
//     F > max((1 + m) * C, C + w)
//   each get, of at most kGetBlocks blocks, may take max((1 + m) * c, w), with c what computing
//     these blocks would take; after one that took longer no further one is made.
// So the first token comes at most m times C and one get's wait later than without a store.
//
// What was not measured for kForget is not known: then the next prefix is fetched, and measured. A
// store that was slow once is so found fast again.
//
// Thread-safe; never blocks.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "common/clock.h"
#include "common/mutex.h"
#include "prefill_worker/metrics.h"

namespace oscarkv {

// seconds = a * x + b * y with a, b >= 0, fitted to the latest observations; an older one weighs
// 0.9 of the next. While they do not tell x and y apart, all is put down to y. Not thread-safe.
class CostFit {
 public:
  void Add(double x, double y, double seconds);
  double Predict(double x, double y) const;

 private:
  double xx_ = 0, xy_ = 0, yy_ = 0, xs_ = 0, ys_ = 0;
};

struct FetchPolicyOptions {
  bool measured = true;  // false: all that is stored is fetched, however long it takes
  float margin = 0.25f;
  Duration min_wait = std::chrono::milliseconds(250);
};

class FetchPolicy {
 public:
  static constexpr size_t kGetBlocks = 16;
  static constexpr Duration kForget = std::chrono::seconds(10);

  FetchPolicy(const FetchPolicyOptions& options, const Clock* clock, PrefillMetrics* metrics)
      : options_(options), clock_(clock), metrics_(metrics) {}

  // The tokens [begin, end) of a prompt were computed in `took`.
  void Computed(int begin, int end, Duration took);
  // A get of `asked` bytes brought `moved` of them over `lanes` in `took`. One that brought nothing
  // counts only when it was `late`, given up because of its deadline.
  void Fetched(const std::string& lanes, uint64_t asked, uint64_t moved, Duration took, bool late);

  // What computing the tokens [begin, end) would take if `prompts` take turns with it, itself
  // included; what fetching `bytes` would. Seconds; empty: not known.
  std::optional<double> ComputeSeconds(int begin, int end, int prompts) const;
  std::optional<double> FetchSeconds(uint64_t bytes) const;

  // Whether to fetch what would take `fetch` rather than compute what would take `compute`.
  bool WorthFetching(std::optional<double> fetch, std::optional<double> compute) const;
  // How long a get may take whose tokens would take `compute`. Duration::max: as long as it likes.
  Duration Patience(std::optional<double> compute) const;

 private:
  struct Lane {
    CostFit fit;       // of 1 and bytes
    double bytes = 0;  // recent, with the fit's weights
    Time last{};
  };

  const FetchPolicyOptions options_;
  const Clock* const clock_;
  PrefillMetrics* const metrics_;
  mutable Mutex mu_;
  CostFit compute_ GUARDED_BY(mu_);  // of tokens times their mean position, and tokens
  bool computed_ GUARDED_BY(mu_) = false;
  std::map<std::string, Lane> lanes_ GUARDED_BY(mu_);  // by their names as a get reports them
};

}  // namespace oscarkv
