#include "prefill_worker/fetch_policy.h"

#include <algorithm>

namespace oscarkv {
namespace {

constexpr double kKeep = 0.9;  // weight of an observation relative to the next one
// A get that was given up is taken to have needed so many times its wait, at most.
constexpr double kMostLate = 16;

double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

void CostFit::Add(double x, double y, double seconds) {
  for (double* sum : {&xx_, &xy_, &yy_, &xs_, &ys_}) *sum *= kKeep;
  xx_ += x * x;
  xy_ += x * y;
  yy_ += y * y;
  xs_ += x * seconds;
  ys_ += y * seconds;
}

// The normal equations of two unknowns. Observations of one size only do not tell them apart: then
// all is put down to y, and so where a would be negative; where b would be, to x.
double CostFit::Predict(double x, double y) const {
  const double determinant = xx_ * yy_ - xy_ * xy_;
  double a = 0, b = 0;
  if (determinant > 1e-6 * xx_ * yy_) {
    a = (xs_ * yy_ - ys_ * xy_) / determinant;
    b = (ys_ * xx_ - xs_ * xy_) / determinant;
  }
  if (b < 0 || yy_ <= 0) {
    a = xx_ > 0 ? xs_ / xx_ : 0;
    b = 0;
  } else if (a < 0 || (a == 0 && b == 0)) {
    a = 0;
    b = ys_ / yy_;
  }
  return a * x + b * y;
}

void FetchPolicy::Computed(int begin, int end, Duration took) {
  const double tokens = end - begin;
  const double seconds = Seconds(took);
  MutexLock lock(mu_);
  compute_.Add(tokens * (begin + end) / 2, tokens, seconds);
  computed_ = true;
  if (seconds > 0) metrics_->compute_rate.Set(tokens / seconds);
}

void FetchPolicy::Fetched(const std::string& lanes, uint64_t asked, uint64_t moved, Duration took,
                          bool late) {
  if (moved == 0 && !late) return;
  const double seconds = Seconds(took);
  const double share = static_cast<double>(moved) / static_cast<double>(std::max(asked, moved));
  const Time now = clock_->Now();
  MutexLock lock(mu_);
  // Nobody knows by which lane nothing came: it is put down to the one that brings most.
  std::string name = lanes;
  if (name.empty()) {
    const auto most = std::max_element(
        lanes_.begin(), lanes_.end(),
        [](const auto& a, const auto& b) { return a.second.bytes < b.second.bytes; });
    name = most == lanes_.end() ? "none" : most->first;
  }
  for (auto& [other, lane] : lanes_) lane.bytes *= kKeep;
  Lane& lane = lanes_[name];
  if (now - lane.last >= kForget) lane = Lane();
  lane.bytes += static_cast<double>(asked);
  lane.last = now;
  if (late) {
    lane.fit.Add(1, static_cast<double>(asked), seconds / std::max(share, 1 / kMostLate));
  } else {
    lane.fit.Add(1, static_cast<double>(moved), seconds);
  }
  if (seconds > 0) {
    metrics_->fetch_rate.With({name}).Set(static_cast<double>(moved) / seconds);
  }
}

std::optional<double> FetchPolicy::ComputeSeconds(int begin, int end, int prompts) const {
  const double tokens = end - begin;
  MutexLock lock(mu_);
  if (!computed_) return std::nullopt;
  return prompts * compute_.Predict(tokens * (begin + end) / 2, tokens);
}

std::optional<double> FetchPolicy::FetchSeconds(uint64_t bytes) const {
  const Time now = clock_->Now();
  double sum = 0, weight = 0;
  MutexLock lock(mu_);
  for (const auto& [name, lane] : lanes_) {
    if (now - lane.last >= kForget) continue;
    sum += lane.bytes * lane.fit.Predict(1, static_cast<double>(bytes));
    weight += lane.bytes;
  }
  if (weight <= 0) return std::nullopt;
  return sum / weight;
}

bool FetchPolicy::WorthFetching(std::optional<double> fetch, std::optional<double> compute) const {
  if (!options_.measured || !fetch || !compute) return true;
  return *fetch <=
         std::max((1 + options_.margin) * *compute, *compute + Seconds(options_.min_wait));
}

Duration FetchPolicy::Patience(std::optional<double> compute) const {
  if (!options_.measured || !compute) return Duration::max();
  const double seconds = (1 + options_.margin) * *compute;
  // A day is as good as for ever, and what a fit says of a strange prompt may be anything.
  if (!(seconds < 86400)) return Duration::max();
  return std::max(options_.min_wait,
                  std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
}

}  // namespace oscarkv
